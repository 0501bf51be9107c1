"""Layers with quantized weights, simulated in torch as the exported file computes them."""

from panther.nn.quantized.blocks import BlockLinear
from panther.nn.quantized.conv import Int4Kernel, Int8Kernel, StoredConv, StoredKernel
from panther.nn.quantized.corrected import CorrectedLinear, FactoredLinear
from panther.nn.quantized.embedding import BlockEmbedding, Int8Embedding
from panther.nn.quantized.int8 import LEVELS, Int8Linear

__all__ = [
    "LEVELS",
    "BlockEmbedding",
    "BlockLinear",
    "CorrectedLinear",
    "FactoredLinear",
    "Int4Kernel",
    "Int8Embedding",
    "Int8Kernel",
    "Int8Linear",
    "StoredConv",
    "StoredKernel",
]
