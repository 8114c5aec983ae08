"""Datasets, one file each.

`load(data_dir)` returns all of it on the CPU; `download(data_dir)`, where there is one, fetches it. Importing this
package or one of its modules imports neither torch nor torchvision nor scikit-learn.
"""
