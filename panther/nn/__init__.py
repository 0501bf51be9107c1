"""Sketched layers and their functional core."""

from panther.nn import functional
from panther.nn.conditional import ConditionalSKLinear
from panther.nn.conv import SKConv1d, SKConv2d
from panther.nn.embedding import LowRankEmbedding, LowRankEmbeddingBag
from panther.nn.head import LowRankHead
from panther.nn.kernels import cuda
from panther.nn.linear import SKLinear
from panther.nn.mlp import sketched_mlp
from panther.nn.progressive import ProgressiveSKLinear, grow

__all__ = [
    "ConditionalSKLinear",
    "LowRankEmbedding",
    "LowRankEmbeddingBag",
    "LowRankHead",
    "ProgressiveSKLinear",
    "SKConv1d",
    "SKConv2d",
    "SKLinear",
    "cuda",
    "functional",
    "grow",
    "sketched_mlp",
]
