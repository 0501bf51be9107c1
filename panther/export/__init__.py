"""Export: a PyTorch model as one self-describing ONNX file in a model repository.

Modules that need torch load on first use: reading a file and its card needs only onnx.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from panther.export.api import export_onnx
    from panther.export.card import (
        CARD_KEY,
        Column,
        CompressionCurve,
        CurvePoint,
        Input,
        ModelCard,
        Output,
        Training,
        read_card,
    )
    from panther.export.errors import ExportError
    from panther.export.inspection import inspect_file
    from panther.export.report import ExportReport

_HOME = {
    "CARD_KEY": "card",
    "Column": "card",
    "CompressionCurve": "card",
    "CurvePoint": "card",
    "ExportError": "errors",
    "ExportReport": "report",
    "Input": "card",
    "ModelCard": "card",
    "Output": "card",
    "Training": "card",
    "export_onnx": "api",
    "inspect_file": "inspection",
    "read_card": "card",
}

__all__ = [
    "CARD_KEY",
    "Column",
    "CompressionCurve",
    "CurvePoint",
    "ExportError",
    "ExportReport",
    "Input",
    "ModelCard",
    "Output",
    "Training",
    "export_onnx",
    "inspect_file",
    "read_card",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'panther.export' has no attribute {name!r}")
    return getattr(importlib.import_module(f"panther.export.{_HOME[name]}"), name)
