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
    """One sketched layer of the model.

    Attributes:
        plan: "two_products", "dense", or "merged": computed together with the layer that `merged_into` names, which
            has all the multiply-adds.
    """

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
    merged_into: str | None = None


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
class OutputError:
    """The errors of one output."""

    name: str
    max_absolute_error: float
    max_relative_error: float
    mean_relative_error: float


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
    outputs: tuple[OutputError, ...] = ()


@dataclass(frozen=True)
class Storage:
    """How weights are kept.

    Attributes:
        precision: of the running graph: "float32", "float16" or "int8" (weights alone).
        u_storage: of the fixed matrices in the file: "bits", "float" or "int8".
        weight_bytes: of all constants when the file is loaded.
    """

    precision: str
    u_storage: str
    weight_bytes: int


@dataclass(frozen=True)
class PlannedSite:
    """What was decided for a site.

    Attributes:
        layers: its sketched layers.
        plan: "two_products" or "dense".
        reason: why, in a few words.
        weight_bytes: of the matrices that it multiplies by, resident.
        median_us: for each plan that was measured, a time for each batch size.
    """

    layers: list[str]
    plan: str
    reason: str
    weight_bytes: int
    median_us: dict[str, list[float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Planning:
    """How the plans were decided.

    Attributes:
        device, num_threads, runtime: what was measured on.
        batch_sizes: that were measured at.
        sites: each linear map, its plan, the reason, and the median times of what was measured.
    """

    device: str
    num_threads: int
    runtime: str
    batch_sizes: tuple[int, ...]
    sites: tuple[PlannedSite, ...]


@dataclass(frozen=True)
class Latency:
    """Median times of one run of the whole file and of its dense twin, measured in turn, one for each batch size."""

    device: str
    num_threads: int
    batch_sizes: tuple[int, ...]
    median_us: tuple[float, ...]
    dense_twin_median_us: tuple[float, ...]


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
    storage: Storage
    planning: Planning
    latency: Latency | None
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
