"""Sketched linear layers for PyTorch: build, train, and export them.

Submodules load on first use: ``import panther`` is cheap, and the ``panther`` command can name missing packages where
torch is not installed.

>>> import panther as pr
>>> layer = pr.nn.SKLinear(784, 512, num_terms=2, low_rank=64)
>>> layer.S1s.shape
torch.Size([2, 784, 64])
"""

from __future__ import annotations

import contextlib
import importlib.abc
import importlib.util
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from panther import analysis as analysis
    from panther import bits as bits
    from panther import checkpoint as checkpoint
    from panther import compression as compression
    from panther import convert as convert
    from panther import efficiency as efficiency
    from panther import export as export
    from panther import linalg as linalg
    from panther import nn as nn
    from panther import quantize as quantize
    from panther import sketch as sketch
    from panther import train as train
    from panther.analysis import analyze as analyze
    from panther.analysis import approximation_quality as approximation_quality
    from panther.checkpoint import CheckpointError as CheckpointError
    from panther.checkpoint import load as load
    from panther.checkpoint import save as save
    from panther.compression import Compressed as Compressed
    from panther.compression import CompressionReport as CompressionReport
    from panther.compression import compress as compress
    from panther.convert import ConversionError as ConversionError
    from panther.convert import ConversionReport as ConversionReport
    from panther.convert import distill_ as distill_
    from panther.convert import restore_ as restore_
    from panther.convert import sketch_ as sketch_
    from panther.convert import sketch_and_distill as sketch_and_distill
    from panther.efficiency import check_parameter_efficiency as check_parameter_efficiency
    from panther.efficiency import suggest as suggest
    from panther.nn import sketched_mlp as sketched_mlp
    from panther.quantize import QuantizationReport as QuantizationReport
    from panther.quantize import quantize_ as quantize_
    from panther.train import param_groups as param_groups

__version__ = "0.1.0"

_SUBMODULES = frozenset(
    {
        "analysis",
        "bits",
        "checkpoint",
        "compression",
        "convert",
        "efficiency",
        "export",
        "linalg",
        "nn",
        "quantize",
        "sketch",
        "train",
    }
)
_HOME = {
    "CheckpointError": "panther.checkpoint",
    "Compressed": "panther.compression",
    "CompressionReport": "panther.compression",
    "ConversionError": "panther.convert",
    "ConversionReport": "panther.convert",
    "QuantizationReport": "panther.quantize",
    "analyze": "panther.analysis",
    "approximation_quality": "panther.analysis",
    "check_parameter_efficiency": "panther.efficiency",
    "compress": "panther.compression",
    "distill_": "panther.convert",
    "load": "panther.checkpoint",
    "param_groups": "panther.train",
    "quantize_": "panther.quantize",
    "restore_": "panther.convert",
    "save": "panther.checkpoint",
    "sketch_": "panther.convert",
    "sketch_and_distill": "panther.convert",
    "sketched_mlp": "panther.nn",
    "suggest": "panther.efficiency",
}

__all__ = [
    "CheckpointError",
    "Compressed",
    "CompressionReport",
    "ConversionError",
    "ConversionReport",
    "QuantizationReport",
    "analysis",
    "analyze",
    "approximation_quality",
    "bits",
    "check_parameter_efficiency",
    "checkpoint",
    "compress",
    "compression",
    "convert",
    "distill_",
    "efficiency",
    "export",
    "linalg",
    "load",
    "nn",
    "param_groups",
    "quantize",
    "quantize_",
    "restore_",
    "save",
    "sketch",
    "sketch_",
    "sketch_and_distill",
    "sketched_mlp",
    "suggest",
    "train",
]


class _RegistersWithTransformers(importlib.abc.MetaPathFinder):
    """Registers converted models with transformers' from_pretrained, once transformers is imported."""

    _TARGET = "transformers.quantizers.auto"

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> Any:  # noqa: ARG002
        if fullname != self._TARGET:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def exec_module(module: Any) -> None:
            execute(module)
            # a transformers without this extension point is left as it is
            with contextlib.suppress(ImportError):
                importlib.import_module("panther.huggingface")

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


if _RegistersWithTransformers._TARGET in sys.modules:
    with contextlib.suppress(ImportError):
        importlib.import_module("panther.huggingface")
elif not any(type(finder).__name__ == _RegistersWithTransformers.__name__ for finder in sys.meta_path):
    sys.meta_path.insert(0, _RegistersWithTransformers())


def __getattr__(name: str) -> Any:
    if name in _SUBMODULES:
        return importlib.import_module(f"panther.{name}")
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'panther' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
