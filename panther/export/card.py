"""The model card: description of a file, as JSON in its ONNX metadata (docs/model-card.schema.json)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import onnx

from panther.export.card_curve import CompressionCurve

CARD_KEY = "panther.card"
SCHEMA_VERSION = "1.0"
# ways to read the last axis of an output
KINDS = ("logits", "probabilities", "multilabel", "regression")
# types of a column's values
COLUMN_TYPES = ("number", "integer", "boolean", "category")


@dataclass(frozen=True)
class Column:
    """A column of an input whose rows are those of a table.

    Attributes:
        name: as clients use it.
        type: "number", "integer", "boolean" or "category", which goes into the model as its place among the categories.
        description: what it means.
        unit: of the numbers, such as "cm".
        categories: the texts that a category may be, in the order of their codes 0, 1, …
    """

    name: str
    type: str = "number"
    description: str | None = None
    unit: str | None = None
    categories: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise ValueError(f"name ({self.name!r}) of a column must be a text that is not empty")
        if self.type not in COLUMN_TYPES:
            known = ", ".join(map(repr, COLUMN_TYPES))
            raise ValueError(f"type ({self.type!r}) of column {self.name!r} must be one of {known}")
        if (self.categories is None) == (self.type == "category"):
            raise ValueError(
                f"column {self.name!r} of type {self.type!r}: a category needs categories, and no other type has them"
            )
        if self.categories is not None and len(set(self.categories)) < max(1, len(self.categories)):
            raise ValueError(f"categories of column {self.name!r} must differ, and be at least one")


@dataclass(frozen=True)
class Input:
    """An input of the model.

    Attributes:
        name: as in the graph.
        description: of the expected values.
        columns: of an input of shape (rows, columns), so that rows can be sent by the names of their columns.
        sample_rows: real rows, a value a column as a client sends it.
    """

    name: str
    description: str | None = None
    columns: tuple[Column, ...] | None = None
    sample_rows: tuple[tuple[float | str, ...], ...] | None = None

    def __post_init__(self) -> None:
        if self.columns is not None:
            names = [column.name for column in self.columns]
            if len(set(names)) < max(1, len(names)):
                raise ValueError(f"columns of input {self.name!r} must have names that differ, and be at least one")
        width = len(self.columns or ())
        for row in self.sample_rows or ():
            if len(row) != width:
                raise ValueError(
                    f"sample_rows of input {self.name!r} hold a row of {len(row)} values; the input has {width} columns"
                )

    def check_width(self, shape: Sequence[int]) -> None:
        """Check that the columns match an example input.

        Raises:
            ValueError: the input is no table, or has another number of columns.
        """
        if self.columns is not None and (len(shape) != 2 or shape[1] != len(self.columns)):
            raise ValueError(
                f"input {self.name!r} names {len(self.columns)} columns; its example has the shape {tuple(shape)}, "
                f"which must be (rows, {len(self.columns)})"
            )


@dataclass(frozen=True)
class Output:
    """An output of the model.

    Attributes:
        name: as in the graph.
        description: what it means.
        kind: meaning of the last axis: "logits" or "probabilities" of classes, exactly one of which is right;
            "multilabel", a logit for each label, any number of which is right; "regression", predicted numbers.
        labels: the names of the classes, labels or numbers, one for each entry of the last axis.
        unit: of the numbers of a regression, such as "mg/dL".
    """

    name: str
    description: str | None = None
    kind: str | None = None
    labels: tuple[str, ...] | None = None
    unit: str | None = None

    def __post_init__(self) -> None:
        if self.kind not in (None, *KINDS):
            known = ", ".join(map(repr, KINDS))
            raise ValueError(f"kind ({self.kind!r}) of output {self.name!r} must be one of {known}, or None")
        if self.unit is not None and self.kind != "regression":
            raise ValueError(f"unit ({self.unit!r}) of output {self.name!r} needs kind='regression', not {self.kind!r}")
        if self.unit is not None and not (isinstance(self.unit, str) and self.unit.strip()):
            raise ValueError(f"unit ({self.unit!r}) of output {self.name!r} must be a text such as 'mg/dL', or None")
        if self.labels is not None and not self.labels:
            raise ValueError(f"labels of output {self.name!r} must not be empty")


@dataclass(frozen=True)
class Training:
    """Training data and settings, and held-out metrics of the model and its dense twin."""

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
        uses: names of the modules that share its matrices, where there are several.
        biases: how many biases they have, where there are several.
        note: further remark.
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
    uses: tuple[str, ...] | None = None
    biases: int | None = None
    note: str | None = None


@dataclass(frozen=True)
class QuantizedLayer:
    """One quantized layer.

    Attributes:
        kind: "linear", "embedding" or "convolution".
        in_features, out_features: of an embedding its rows and their width, of a convolution the entries of a patch
            and its output channels.
        scheme: "int8-static": weights with a scale an output channel, activations with one constant scale a tensor;
            "int4-blocks", "int8-blocks": a scale and a zero point for each block of a row;
            "int8-rows": an embedding with a scale a row;
            "int8-stored": weights with a scale an output channel, which are unpacked to floats when the file is loaded;
            "int4-stored": the same with a scale for each block of an output channel.
        smoothed: whether outliers of its input were moved into the weight.
        weight_bytes: of the weight, its scales and zero points, and the smoothing.
        block_size: entries in a block, where there are blocks.
    """

    name: str
    kind: str
    in_features: int
    out_features: int
    scheme: str
    smoothed: bool
    weight_bytes: int
    block_size: int | None = None


@dataclass(frozen=True)
class ConvolutionShape:
    """Sizes of a convolution; one number for each spatial axis."""

    in_channels: int
    out_channels: int
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    groups: int


@dataclass(frozen=True)
class Convolution:
    """One sketched convolution of the model.

    Attributes:
        terms: "output": a convolution with the kernel, then a 1x1 one; "input": the other way round; "both": terms of
            both kinds.
        plan: "two_products": the convolutions of its terms; "dense": one convolution.
        reason: of the plan, in a few words.
        weight_bytes: of the weights that it convolves by, resident.
        multiply_adds_per_position: of the output.
        median_us: for each plan that was measured, a time for each batch size.
    """

    name: str
    shape: ConvolutionShape
    num_terms: int
    low_rank: int
    terms: str
    bias: bool
    sketch: str
    plan: str
    reason: str
    weight_bytes: int
    parameters: Parameters
    multiply_adds_per_position: MultiplyAdds
    median_us: dict[str, list[float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Embedding:
    """One embedding of low rank: a table of rank columns that is looked up, and a product behind it.

    Attributes:
        mode: "lookup", or "sum" or "mean" for a bag.
        multiply_adds_per_row: multiply-adds per lookup or bag (0 for a dense table), plus those per row of each head.
        uses: names of the modules that share its factors, if there are several.
        heads: names of the linear layers among them.
    """

    name: str
    num_embeddings: int
    embedding_dim: int
    rank: int
    mode: str
    parameters: Parameters
    multiply_adds_per_row: MultiplyAdds
    uses: tuple[str, ...] | None = None
    heads: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Totals:
    """Parameter counts of each kind of layers together, the sketched linear layers first, and of the whole model."""

    sketched_layers: Parameters
    model: Parameters
    convolutions: Parameters | None = None
    embeddings: Parameters | None = None


@dataclass(frozen=True)
class DenseTwin:
    """Counts and figures of the same model with an nn.Linear for each sketched layer."""

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

    Attributes:
        left_out: how many values were not compared: a mask hides the whole row, and one side is not defined there.
    """

    reference: str
    runtime: str
    rows: int
    max_absolute_error: float
    max_relative_error: float
    mean_relative_error: float
    tolerance: float
    outputs: tuple[OutputError, ...] = ()
    left_out: int | None = None


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
class PlannedSite:
    """The planned computation of a site.

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
        device, num_threads, runtime: of the measurement.
        batch_sizes: rows of the measured runs.
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
