"""Bodies of requests and answers as OpenAPI describes them."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class Live(BaseModel):
    """Answer of the liveness probe."""

    live: bool


class Ready(BaseModel):
    """Answer of the readiness probe."""

    ready: bool
    error: str | None = Field(None, description="why it is not ready")


class ErrorBody(BaseModel):
    """The form of every error."""

    error: str


class PredictBody(BaseModel):
    """Rows for a model: a nested list for its only input, or one for each input by name."""

    model_config = ConfigDict(extra="forbid")

    inputs: list[Any] | dict[str, list[Any]] = Field(
        description="rows of numbers, or a list of rows for each input by name"
    )
    outputs: list[str] | None = Field(None, description="outputs to return, in this order; default: all")
    top_k: int | None = Field(None, ge=1, description="how many labels to rank for each row")


class RankedLabel(BaseModel):
    """A label and its probability."""

    label: str
    probability: float


class Prediction(RankedLabel):
    """The likeliest label of one row, and the ranking where ``top_k`` asked for one."""

    top_k: list[RankedLabel] | None = None


class PredictAnswer(BaseModel):
    """Outputs by name; predictions where the model's card has labels."""

    model: str
    version: str
    outputs: dict[str, Any]
    predictions: list[Prediction] | None = None
