"""The model card: what a file says of itself, as JSON in its ONNX metadata (docs/model-card.schema.json)."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

import onnx

CARD_KEY = "panther.card"
SCHEMA_VERSION = "1.0"


@dataclass(frozen=True)
class Input:
    """An input of the model: its name, and what a caller should put there."""

    name: str
    description: str | None = None


@dataclass(frozen=True)
class Output:
    """An output of the model.

    Attributes:
        name: as in the graph.
        description: what it means.
        kind: "logits" or "probabilities" when the last axis scores classes.
        labels: the names of the classes, one for each entry of the last axis.
    """

    name: str
    description: str | None = None
    kind: str | None = None
    labels: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.kind not in (None, "logits", "probabilities"):
            raise ValueError(f"kind ({self.kind!r}) of output {self.name!r} must be 'logits', 'probabilities' or None")
        if self.labels is not None and not self.labels:
            raise ValueError(f"labels of output {self.name!r} must not be empty")


@dataclass(frozen=True)
class Training:
    """How the model was trained, and how well it and its dense twin did on held-out rows."""

    dataset: str | None = None
    train_rows: int | None = None
    test_rows: int | None = None
    epochs: int | None = None
    seed: int | None = None
    duration_s: float | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    dense_twin_metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Parameters:
    """Parameter counts, as in panther.efficiency.ParameterCount."""

    dense: int
    learnable: int
    fixed: int


@dataclass(frozen=True)
class MultiplyAdds:
    """Multiply-adds for one row through a layer: of the dense layer, and of the graph that was written."""

    dense: int
    planned: int


@dataclass(frozen=True)
class Layer:
    """One sketched layer of the model."""

    name: str
    in_features: int
    out_features: int
    num_terms: int
    low_rank: int
    bias: bool
    sketch: str
    plan: str
    parameters: Parameters
    multiply_adds_per_row: MultiplyAdds


@dataclass(frozen=True)
class Totals:
    """Parameter counts of the sketched layers together, and of the whole model."""

    sketched_layers: Parameters
    model: Parameters


@dataclass(frozen=True)
class DenseTwin:
    """The same model with an nn.Linear for each sketched layer."""

    weight_bytes: int


@dataclass(frozen=True)
class Check:
    """The comparison with torch that the file passed before it was published.

    A relative error is |y - reference| over the largest |reference| of the same output.
    """

    reference: str
    runtime: str
    rows: int
    max_absolute_error: float
    max_relative_error: float
    mean_relative_error: float
    tolerance: float


@dataclass(frozen=True)
class ModelCard:
    """The whole card; absent optional fields are left out of the JSON."""

    name: str
    created_at: str
    inputs: tuple[Input, ...]
    outputs: tuple[Output, ...]
    layers: tuple[Layer, ...]
    totals: Totals
    dense_twin: DenseTwin
    check: Check
    versions: dict[str, str]
    training: Training | None = None
    description: str | None = None
    license: str | None = None
    authors: tuple[str, ...] = ()
    preprocessing: str | None = None
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
