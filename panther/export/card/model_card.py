"""The whole model card, and its JSON in the ONNX metadata of a file."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

import onnx

from panther.export.card.curve import CompressionCurve
from panther.export.card.interface import Input, Output, Training
from panther.export.card.layers import Convolution, Embedding, Layer, QuantizedLayer, Totals
from panther.export.card.measured import Check, Latency, Planning

CARD_KEY = "panther.card"
SCHEMA_VERSION = "1.0"


@dataclass(frozen=True)
class DenseTwin:
    """Counts and figures of the same model with an nn.Linear for each sketched layer."""

    weight_bytes: int


@dataclass(frozen=True)
class Storage:
    """How weights are kept.

    Attributes:
        precision: of the running graph: "float32", "float16", "int8" (weights alone), or "mixed": float32 with some
            layers in fewer bits.
        u_storage: of the fixed matrices in the file: "bits", "float" or "int8".
        weight_bytes: of all constants when the file is loaded.
        bytes_by_type: the same by their type in that graph, as "float32", "int8" or "int4".
    """

    precision: str
    u_storage: str
    weight_bytes: int
    bytes_by_type: dict[str, int] | None = None


@dataclass(frozen=True)
class ModelCard:
    """The whole card; its fields are the keys of its JSON, without absent optional ones."""

    name: str
    created_at: str
    inputs: tuple[Input, ...]
    outputs: tuple[Output, ...]
    layers: tuple[Layer, ...]
    totals: Totals
    dense_twin: DenseTwin
    check: Check
    versions: dict[str, str]
    storage: Storage
    planning: Planning
    latency: Latency | None
    training: Training | None = None
    description: str | None = None
    license: str | None = None
    authors: tuple[str, ...] = ()
    preprocessing: str | None = None
    notes: tuple[str, ...] | None = None
    quantized_layers: tuple[QuantizedLayer, ...] | None = None
    convolutions: tuple[Convolution, ...] | None = None
    embeddings: tuple[Embedding, ...] | None = None
    compression_curve: CompressionCurve | None = None
    schema_version: str = SCHEMA_VERSION

    def to_json(self) -> str:
        """The card as the text that goes into the file."""
        return json.dumps(_without_none(asdict(self)), ensure_ascii=False, allow_nan=False)


def read_card(model: onnx.ModelProto) -> dict[str, Any] | None:
    """Read the card of a model as plain JSON; None where it has none."""
    for entry in model.metadata_props:
        if entry.key == CARD_KEY:
            card: dict[str, Any] = json.loads(entry.value)
            return card
    return None


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [_without_none(item) for item in value]
    return value
