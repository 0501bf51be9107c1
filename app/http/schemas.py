"""OpenAPI schemas of request and response bodies."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class Liveness(BaseModel):
    """Response of the liveness probe."""

    live: bool
    error: str | None = Field(None, description="the reason why the server is not live")


class Readiness(BaseModel):
    """Response of the readiness probe."""

    ready: bool
    error: str | None = Field(None, description="the reason why the server is not ready")


class ErrorBody(BaseModel):
    """Body of every error."""

    error: str


class PredictBody(BaseModel):
    """Rows for a model: a nested list for its only input, or one per input by name."""

    model_config = ConfigDict(extra="forbid")

    inputs: list[Any] | dict[str, list[Any]] = Field(
        description="rows of numbers, or a list of rows per input, by name"
    )
    outputs: list[str] | None = Field(None, description="outputs to return, in this order; default: all")
    top_k: int | None = Field(None, ge=1, description="number of labels to rank per row")


class RankedLabel(BaseModel):
    """A label and its probability."""

    label: str
    probability: float


class Prediction(RankedLabel):
    """The most likely label of one row, with a ranking if ``top_k`` requests it."""

    top_k: list[RankedLabel] | None = None


class PredictAnswer(BaseModel):
    """Response of the plain API: outputs by name, and predictions if the model's card has labels."""

    model: str
    version: str
    outputs: dict[str, Any]
    predictions: list[Prediction] | None = None


class InferTensor(BaseModel):
    """A tensor of the Open Inference Protocol; ``data`` is missing if it follows as binary data."""

    name: str
    shape: list[int]
    datatype: str = Field(description="BOOL, UINT8 … INT64, FP16, FP32, FP64, BF16 or BYTES")
    parameters: dict[str, Any] | None = Field(None, description="binary_data_size: size of the data that follows")
    data: list[Any] | None = Field(None, description="row-major, nested or flat")


class InferOutput(BaseModel):
    """A requested output."""

    name: str
    parameters: dict[str, Any] | None = Field(
        None, description="binary_data: true or false; classification: number of labels"
    )


class InferBody(BaseModel):
    """A request of the Open Inference Protocol; unknown members are ignored."""

    model_name: str | None = Field(None, description="the model in the URL, or omitted")
    model_version: str | None = Field(None, description="the version in the URL, or omitted")
    id: str | None = None
    parameters: dict[str, Any] | None = Field(
        None, description="priority (1 is highest), timeout (microseconds), binary_data_output"
    )
    inputs: list[InferTensor]
    outputs: list[InferOutput] | None = None


class InferAnswer(BaseModel):
    """A response of the Open Inference Protocol."""

    model_name: str
    model_version: str
    id: str | None = None
    outputs: list[InferTensor]
