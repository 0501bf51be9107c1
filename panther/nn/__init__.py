"""Sketched layers and their functional core."""

from panther.nn import functional
from panther.nn.conditional import ConditionalSKLinear
from panther.nn.linear import SKLinear
from panther.nn.mlp import sketched_mlp
from panther.nn.progressive import ProgressiveSKLinear, grow

__all__ = ["ConditionalSKLinear", "ProgressiveSKLinear", "SKLinear", "functional", "grow", "sketched_mlp"]
