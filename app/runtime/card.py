"""The model card as the server reads it; docs/model-card.schema.json is the contract with the exporter."""

from typing import Annotated, Any, Literal

import orjson
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from app.errors import CardError

METADATA_KEY = "panther.card"
SUPPORTED_MAJOR = 1
# Every JSON reader represents whole numbers exactly up to this limit.
_LARGEST = 2**53 - 1


def _whole(value: Any) -> Any:
    """Accept 1.0 as an integer, as JSON Schema does."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Whole = Annotated[int, BeforeValidator(_whole)]
Count = Annotated[Whole, Field(ge=0, le=_LARGEST)]
Size = Annotated[Whole, Field(ge=1, le=_LARGEST)]


class _Part(BaseModel):
    """A part of the card. Unknown fields are ignored, so newer minor versions load; known fields are validated."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True, allow_inf_nan=False)


class Parameters(_Part):
    """Parameter counts in the three ways of docs/counting.md."""

    dense: Count
    learnable: Count
    fixed: Count


class MultiplyAdds(_Part):
    """Multiply-adds for one row: of the dense twin and of the planned graph."""

    dense: Count
    planned: Count


class Layer(_Part):
    """One sketched layer."""

    name: str
    in_features: Size
    out_features: Size
    num_terms: Size
    low_rank: Size
    bias: bool
    sketch: str | None = None
    plan: str
    merged_into: str | None = None
    uses: list[str] | None = None
    biases: Size | None = None
    parameters: Parameters
    multiply_adds_per_row: MultiplyAdds

    def counted(self) -> Parameters:
        """The counts by the formulas: dense d_in·d_out, learnable and fixed L·k·(d_in + d_out), d_out for each bias."""
        bias = self.out_features * (self.biases or 1) if self.bias else 0
        sketched = self.num_terms * self.low_rank * (self.in_features + self.out_features)
        dense = self.in_features * self.out_features + bias
        # Not validated: the product of invalid sizes may exceed the range of a count.
        return Parameters.model_construct(dense=dense, learnable=sketched + bias, fixed=sketched)


class QuantizedLayer(_Part):
    """One quantized linear layer, embedding or convolution."""

    name: str
    kind: str
    in_features: Size
    out_features: Size
    scheme: str
    smoothed: bool
    weight_bytes: Count
    block_size: Size | None = None


class ConvolutionShape(_Part):
    """The sizes of a convolution; lists have one entry per spatial axis."""

    in_channels: Size
    out_channels: Size
    kernel_size: list[Size] = Field(min_length=1)
    stride: list[Size] = Field(min_length=1)
    groups: Size


class Convolution(_Part):
    """One sketched convolution; multiply-adds are per position of its output."""

    name: str
    shape: ConvolutionShape
    num_terms: Size
    low_rank: Size
    terms: str
    bias: bool
    sketch: str | None = None
    plan: str
    reason: str
    weight_bytes: Count
    parameters: Parameters
    multiply_adds_per_position: MultiplyAdds


class Embedding(_Part):
    """One embedding of low rank; multiply-adds are of a row that is looked up, or a bag, and of a row in each head."""

    name: str
    num_embeddings: Size
    embedding_dim: Size
    rank: Size
    mode: str
    parameters: Parameters
    multiply_adds_per_row: MultiplyAdds
    uses: list[str] | None = None
    heads: list[str] | None = None

    def counted(self) -> Parameters:
        """The counts by the formulas: dense V·d, learnable r·(V + d), none fixed."""
        # Not validated, like those of layers.
        return Parameters.model_construct(
            dense=self.num_embeddings * self.embedding_dim,
            learnable=self.rank * (self.num_embeddings + self.embedding_dim),
            fixed=0,
        )


class Column(_Part):
    """A column of a tabular input; a category is encoded as its index in ``categories``."""

    name: str = Field(min_length=1)
    type: Literal["number", "integer", "boolean", "category"] = "number"
    description: str | None = None
    unit: str | None = None
    categories: list[str] | None = Field(default=None, min_length=1)

    @model_validator(mode="after")
    def _categories_of_a_category(self) -> "Column":
        if (self.categories is None) == (self.type == "category"):
            raise ValueError(f"column {self.name!r}: exactly the columns of type 'category' must have categories")
        if self.categories is not None and len(set(self.categories)) < len(self.categories):
            raise ValueError(f"column {self.name!r}: each category must occur once")
        return self


class Input(_Part):
    """An input of the graph: its meaning, column names and sample rows."""

    name: str
    description: str | None = None
    columns: list[Column] | None = Field(default=None, min_length=1)
    sample_rows: list[list[bool | Whole | float | str]] | None = Field(default=None, min_length=1)

    @model_validator(mode="after")
    def _names_differ(self) -> "Input":
        names = [column.name for column in self.columns or ()]
        if len(set(names)) < len(names):
            raise ValueError(f"input {self.name!r}: each column name must occur once")
        return self


class Output(_Part):
    """An output of the graph: its meaning, and the labels of its last axis."""

    name: str
    description: str | None = None
    kind: Literal["logits", "probabilities", "multilabel", "regression"] | None = None
    labels: list[str] | None = Field(default=None, min_length=1)
    unit: str | None = None


class Totals(_Part):
    """Sums over the sketched layers, and over the whole model."""

    sketched_layers: Parameters
    convolutions: Parameters | None = None
    embeddings: Parameters | None = None
    model: Parameters


class DenseTwin(_Part):
    """Counts and measurements of the same model with dense layers."""

    weight_bytes: Count


class OutputError(_Part):
    """Errors of one output."""

    name: str
    max_absolute_error: float = Field(ge=0)
    max_relative_error: float = Field(ge=0)
    mean_relative_error: float = Field(ge=0)


class Check(_Part):
    """The comparison with the PyTorch model, made before the file was published."""

    reference: str
    runtime: str
    rows: Size
    max_absolute_error: float = Field(ge=0)
    max_relative_error: float = Field(ge=0)
    mean_relative_error: float = Field(ge=0)
    tolerance: float = Field(gt=0)
    outputs: list[OutputError] | None = None


class Storage(_Part):
    """Storage format of the weights, and their size in memory."""

    precision: str
    u_storage: str
    weight_bytes: Count
    bytes_by_type: dict[str, Count] | None = None


class Latency(_Part):
    """Median run times of the file and of its dense twin, one per batch size."""

    device: str
    num_threads: Size
    batch_sizes: list[Size]
    median_us: list[Annotated[float, Field(gt=0)]]
    dense_twin_median_us: list[Annotated[float, Field(gt=0)]]

    @model_validator(mode="after")
    def _as_many_times_as_sizes(self) -> "Latency":
        if not len(self.batch_sizes) == len(self.median_us) == len(self.dense_twin_median_us):
            raise ValueError("batch_sizes, median_us and dense_twin_median_us must have the same length")
        return self


class CurvePoint(_Part):
    """One model that a compression considered: its bytes and the error of its outputs."""

    bytes: Count
    error: float = Field(ge=0)
    measured: bool
    chosen: bool = False
    metric: float | None = None


class CompressionCurve(_Part):
    """The models that a compression to a budget considered; one of them is in the file."""

    budget: str
    original_bytes: Count
    original_metric: float | None = None
    points: list[CurvePoint] = Field(min_length=1, max_length=32)

    @model_validator(mode="after")
    def _one_is_chosen(self) -> "CompressionCurve":
        chosen = sum(point.chosen for point in self.points)
        if chosen != 1:
            raise ValueError(f"exactly one of the points must be chosen, not {chosen}")
        return self


class Training(_Part):
    """Data and accuracy of training."""

    dataset: str | None = None
    train_rows: Count | None = None
    test_rows: Count | None = None
    epochs: Count | None = None
    seed: Whole | None = None
    duration_s: float | None = Field(default=None, ge=0)
    metrics: dict[str, float] | None = None
    dense_twin_metrics: dict[str, float] | None = None


class Card(_Part):
    """The model card of a file; the fields are the keys of ``docs/model-card.schema.json``."""

    schema_version: str = Field(pattern=r"^[0-9]+\.[0-9]+$")
    name: str = Field(min_length=1)
    description: str | None = None
    created_at: str
    license: str | None = None
    authors: list[str] | None = None
    preprocessing: str | None = None
    inputs: list[Input]
    outputs: list[Output] = Field(min_length=1)
    layers: list[Layer]
    quantized_layers: list[QuantizedLayer] | None = Field(default=None, min_length=1)
    convolutions: list[Convolution] | None = Field(default=None, min_length=1)
    embeddings: list[Embedding] | None = Field(default=None, min_length=1)
    compression_curve: CompressionCurve | None = None
    totals: Totals
    dense_twin: DenseTwin
    check: Check
    storage: Storage | None = None
    latency: Latency | None = None
    training: Training | None = None
    versions: dict[str, str]

    def contradictions(self) -> list[str]:
        """Contradictions between the card's counts and the formulas, as text; empty if there are none."""
        found = []
        tables = self.embeddings or []
        of_names: list[tuple[str, Layer | Embedding]] = [
            *((f"layer {layer.name!r}", layer) for layer in self.layers),
            *((f"embedding {table.name!r}", table) for table in tables),
        ]
        for name, layer in of_names:
            counted = layer.counted()
            found += [
                f"{name}: the card has {field} {said}, the formula gives {right}"
                for field, said in layer.parameters
                if said != (right := getattr(counted, field))
            ]
        of_kinds = {"sketched_layers": self.layers, "convolutions": self.convolutions or (), "embeddings": tables}
        for name, layers in of_kinds.items():
            for field, said in getattr(self.totals, name) or ():
                right = sum(getattr(layer.parameters, field) for layer in layers)
                if said != right:
                    found.append(f"totals.{name}: the card has {field} {said}, the sum over its layers is {right}")
        return found


def parse_card(text: str) -> Card:
    """Read a card from its JSON.

    Raises:
        CardError: The text is not JSON, has a newer major version, or a field is missing or invalid.
    """
    try:
        raw: Any = orjson.loads(text)
    except ValueError as error:
        raise CardError(f"the card in metadata {METADATA_KEY!r} is not JSON: {error}") from None
    if not isinstance(raw, dict):
        raise CardError(f"the card in metadata {METADATA_KEY!r} must be a JSON object")
    version = str(raw.get("schema_version", ""))
    major = version.partition(".")[0]
    if major.isdecimal() and (len(major) > 9 or int(major) > SUPPORTED_MAJOR):
        raise CardError(
            f"schema_version ({version[:40]}) of the card is newer than {SUPPORTED_MAJOR}.x, the newest version that "
            "this server reads; upgrade the server"
        )
    try:
        return Card.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "card"
        raise CardError(f"the card's {where}: {first['msg']}") from None
