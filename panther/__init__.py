"""Sketched linear layers for PyTorch: build, train, and export them.

Submodules load when they are first used, so that ``import panther`` costs nothing and the ``panther`` command can say
what is missing where torch is not installed.

>>> import panther as pr
>>> layer = pr.nn.SKLinear(784, 512, num_terms=2, low_rank=64)
>>> layer.S1s.shape
torch.Size([2, 784, 64])
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from panther import efficiency as efficiency
    from panther import export as export
    from panther import nn as nn
    from panther import sketch as sketch
    from panther import train as train
    from panther.efficiency import check_parameter_efficiency as check_parameter_efficiency

__version__ = "0.1.0"

_SUBMODULES = frozenset({"efficiency", "export", "nn", "sketch", "train"})
_HOME = {"check_parameter_efficiency": "panther.efficiency"}

__all__ = ["check_parameter_efficiency", "efficiency", "export", "nn", "sketch", "train"]


def __getattr__(name: str) -> Any:
    if name in _SUBMODULES:
        return importlib.import_module(f"panther.{name}")
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'panther' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
