"""The libraries of the families, and the message for a missing one."""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import sys
from pathlib import Path

import torch

# 'make dev-env' puts timm and torchvision here, apart from the other packages: transformers imports a torchvision that
# it finds, and PyPI's does not load beside a CPU build of torch
BESIDE = Path(sys.prefix) / "vision"
# operators for detection, which torchvision declares by the library that does not load
_OPERATORS = ("nms", "qnms")


@functools.cache
def missing(package: str | None) -> str | None:
    """Why a library can't be used; None where it can."""
    if package is None:
        return None
    try:
        _declare_operators()
        importlib.import_module(package)
    except ModuleNotFoundError as error:
        return f"{error.name} is not installed"
    except (ImportError, RuntimeError) as error:
        return f"{package} does not load: {error}"
    return None


@functools.cache
def _declare_operators() -> None:
    """Declare the operators of a torchvision for CUDA, so that the rest of it loads beside a CPU build of torch."""
    try:
        version = importlib.metadata.version("torchvision")
    except importlib.metadata.PackageNotFoundError:
        return
    if torch.version.cuda is None and "+cpu" not in version:
        for name in _OPERATORS:
            torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


if BESIDE.is_dir() and str(BESIDE) not in sys.path:
    sys.path.append(str(BESIDE))
    # at once: whoever imports transformers in this process from now on imports torchvision too
    _declare_operators()
