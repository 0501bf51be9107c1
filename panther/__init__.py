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
    from panther import analysis as analysis
    from panther import bits as bits
    from panther import checkpoint as checkpoint
    from panther import convert as convert
    from panther import efficiency as efficiency
    from panther import export as export
    from panther import nn as nn
    from panther import sketch as sketch
    from panther import train as train
    from panther.analysis import analyze as analyze
    from panther.analysis import approximation_quality as approximation_quality
    from panther.checkpoint import CheckpointError as CheckpointError
    from panther.checkpoint import load as load
    from panther.checkpoint import save as save
    from panther.convert import ConversionError as ConversionError
    from panther.convert import ConversionReport as ConversionReport
    from panther.convert import distill_ as distill_
    from panther.convert import restore_ as restore_
    from panther.convert import sketch_ as sketch_
    from panther.efficiency import check_parameter_efficiency as check_parameter_efficiency
    from panther.efficiency import suggest as suggest
    from panther.nn import sketched_mlp as sketched_mlp
    from panther.train import param_groups as param_groups

__version__ = "0.1.0"

_SUBMODULES = frozenset({"analysis", "bits", "checkpoint", "convert", "efficiency", "export", "nn", "sketch", "train"})
_HOME = {
    "CheckpointError": "panther.checkpoint",
    "ConversionError": "panther.convert",
    "ConversionReport": "panther.convert",
    "analyze": "panther.analysis",
    "approximation_quality": "panther.analysis",
    "check_parameter_efficiency": "panther.efficiency",
    "distill_": "panther.convert",
    "load": "panther.checkpoint",
    "param_groups": "panther.train",
    "restore_": "panther.convert",
    "save": "panther.checkpoint",
    "sketch_": "panther.convert",
    "sketched_mlp": "panther.nn",
    "suggest": "panther.efficiency",
}

__all__ = [
    "CheckpointError",
    "ConversionError",
    "ConversionReport",
    "analysis",
    "analyze",
    "approximation_quality",
    "bits",
    "check_parameter_efficiency",
    "checkpoint",
    "convert",
    "distill_",
    "efficiency",
    "export",
    "load",
    "nn",
    "param_groups",
    "restore_",
    "save",
    "sketch",
    "sketch_",
    "sketched_mlp",
    "suggest",
    "train",
]


def __getattr__(name: str) -> Any:
    if name in _SUBMODULES:
        return importlib.import_module(f"panther.{name}")
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'panther' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
