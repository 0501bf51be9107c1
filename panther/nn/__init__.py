"""Sketched layers and their functional core."""

from panther.nn import functional
from panther.nn.linear import SKLinear

__all__ = ["SKLinear", "functional"]
