"""Quantization: linear layers in static int8 or in blocks of few bits, and embeddings in 8 bits."""

from panther.quantize.api import quantize_
from panther.quantize.blocks import Blocks, Known, Made, MadeFactors, estimate, quantize_weight
from panther.quantize.factors import quantize_factors
from panther.quantize.report import QuantizationReport, QuantizedLayer

__all__ = [
    "Blocks",
    "Known",
    "Made",
    "MadeFactors",
    "QuantizationReport",
    "QuantizedLayer",
    "estimate",
    "quantize_",
    "quantize_factors",
    "quantize_weight",
]
