"""From a PyTorch model to one self-describing ONNX file in a model repository."""

from panther.export.api import ExportReport, export_onnx
from panther.export.card import CARD_KEY, Input, ModelCard, Output, Training, read_card
from panther.export.errors import ExportError

__all__ = [
    "CARD_KEY",
    "ExportError",
    "ExportReport",
    "Input",
    "ModelCard",
    "Output",
    "Training",
    "export_onnx",
    "read_card",
]
