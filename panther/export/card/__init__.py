"""The model card: description of a file, as JSON in its ONNX metadata (docs/model-card.schema.json)."""

from panther.export.card.curve import MAX_POINTS, CompressionCurve, CurvePoint, curve_table
from panther.export.card.interface import Column, Input, Output, Training
from panther.export.card.layers import (
    Convolution,
    ConvolutionShape,
    Embedding,
    Layer,
    MultiplyAdds,
    Parameters,
    QuantizedLayer,
    Totals,
)
from panther.export.card.measured import Check, Latency, OutputError, PlannedSite, Planning
from panther.export.card.model_card import CARD_KEY, SCHEMA_VERSION, DenseTwin, ModelCard, Storage, read_card

__all__ = [
    "CARD_KEY",
    "MAX_POINTS",
    "SCHEMA_VERSION",
    "Check",
    "Column",
    "CompressionCurve",
    "Convolution",
    "ConvolutionShape",
    "CurvePoint",
    "DenseTwin",
    "Embedding",
    "Input",
    "Latency",
    "Layer",
    "ModelCard",
    "MultiplyAdds",
    "Output",
    "OutputError",
    "Parameters",
    "PlannedSite",
    "Planning",
    "QuantizedLayer",
    "Storage",
    "Totals",
    "Training",
    "curve_table",
    "read_card",
]
