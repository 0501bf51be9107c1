"""Compression to a budget: 8 bits, low rank, or both, chosen for every layer jointly."""

from panther.compression.api import compress
from panther.compression.compressed import Compressed
from panther.compression.curve import Curve, Point
from panther.compression.options import KINDS
from panther.compression.report import CompressedLayer, CompressionReport, Side, Speed

__all__ = [
    "KINDS",
    "Compressed",
    "CompressedLayer",
    "CompressionReport",
    "Curve",
    "Point",
    "Side",
    "Speed",
    "compress",
]
