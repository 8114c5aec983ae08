"""The one file that imports torchvision; everything else calls `import_torchvision`."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType


def import_torchvision() -> ModuleType:
    """torchvision, also where its wheel does not match torch's.

    Beside a CPU-only torch the wheel's compiled operators cannot load, and importing the package fails with "operator
    torchvision::nms does not exist". Declaring the schemas that it registers against is enough for datasets, transforms
    and models; the operators themselves (nms, JPEG decoding) stay unavailable. On a matching pair this does nothing.
    """
    if "torchvision" not in sys.modules:
        package = importlib.util.find_spec("torchvision")
        if package is None:
            raise ValueError("torchvision is wanted here and not installed: pip install torchvision.")
        if not _operators_load(Path(package.origin).parent):
            _declare_operators()
    return importlib.import_module("torchvision")


def _operators_load(package: Path) -> bool:
    import torch

    libraries = sorted([*package.glob("_C*.so"), *package.glob("_C*.pyd")])
    try:
        for library in libraries:
            torch.ops.load_library(str(library))
    except OSError:
        return False
    return bool(libraries)


def _declare_operators() -> None:
    import torch

    library = torch.library.Library("torchvision", "DEF")
    for operator in ("nms", "qnms"):
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _declared.append(library)


_declared: list[object] = []
"""Declarations live as long as their library object."""
