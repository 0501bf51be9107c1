"""Operator rules, one module per family; importing this package registers all of them."""

from app.runtime.independence.operators import (
    attention,
    blocked,
    classical,
    control,
    elementwise,
    indexing,
    linear,
    normalization,
    quantization,
    random,
    recurrent,
    reductions,
    sequences,
    shapes,
    slices,
    spatial,
)

__all__ = [
    "attention",
    "blocked",
    "classical",
    "control",
    "elementwise",
    "indexing",
    "linear",
    "normalization",
    "quantization",
    "random",
    "recurrent",
    "reductions",
    "sequences",
    "shapes",
    "slices",
    "spatial",
]
