"""nap_bench: reproduce Normalize-and-Project (Lyle et al., NeurIPS 2024, arXiv 2407.01800) and test its claims.

Importing the package imports nothing else: the workflow and `nap-bench --help` stay fast.
"""

__version__ = "0.1.0"
