"""``POST /models/{name}/benchmark``: check the saving on the serving machine."""

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Body
from pydantic import BaseModel, ConfigDict, Field

from app.benchmark.benchmark import ROWS, run_benchmark
from app.errors import ModelUnavailableError
from app.http.routes.dependencies import SharedState
from app.http.routes.examples import answers
from app.http.routes.predict import ERRORS

router = APIRouter(tags=["models"])
_RUNNING = asyncio.Lock()
_EXAMPLE = {
    "model": "digits",
    "version": "1",
    "provider": "CPUExecutionProvider",
    "num_threads": 2,
    "layers": ["fc1", "fc2", "fc3"],
    "dense_twin_weights": 535040,
    "batches": [
        {"rows": 1, "rounds": 2000, "model_median_us": 61.2, "dense_twin_median_us": 79.4, "ratio": 0.7708},
        {"rows": 32, "rounds": 1403, "model_median_us": 301.5, "dense_twin_median_us": 402.2, "ratio": 0.7496},
    ],
    "duration_s": 3.1,
}


class BenchmarkBody(BaseModel):
    """Options of a benchmark."""

    model_config = ConfigDict(extra="forbid")

    rows: list[Annotated[int, Field(ge=1, le=4096)]] = Field(
        default=list(ROWS),
        min_length=1,
        max_length=8,
        description="batch sizes; sizes above max_batch_rows are skipped",
    )
    seconds: float = Field(default=3.0, gt=0, le=30, description="time to spend on measuring")


class BatchResult(BaseModel):
    """One batch size."""

    rows: int
    rounds: int
    model_median_us: float
    dense_twin_median_us: float
    ratio: float = Field(description="the model's median over the twin's; below 1 is faster than dense")


class BenchmarkAnswer(BaseModel):
    """The model compared with its dense twin."""

    model: str
    version: str
    provider: str
    num_threads: int
    layers: list[str] = Field(description="sketched layers, which are dense in the twin")
    dense_twin_weights: int = Field(description="number of weights in their dense matrices")
    batches: list[BatchResult]
    duration_s: float


@router.post(
    "/models/{name}/benchmark",
    responses={**ERRORS, **answers(_EXAMPLE, named=True)},
    openapi_extra={"requestBody": {"content": {"application/json": {"example": {"rows": [1, 32], "seconds": 3}}}}},
)
async def benchmark(
    state: SharedState, name: str, body: Annotated[BenchmarkBody | None, Body()] = None
) -> BenchmarkAnswer:
    """Run the loaded model and a dense twin of random weights alternately; concurrent requests become slower.

    The twin is the same graph with one dense matrix per sketched layer, made for this call and then discarded.
    """
    state.control.check_allowed()
    serving = state.repository.get(name)
    if _RUNNING.locked():
        raise ModelUnavailableError("another benchmark is running; try again later")
    asked = body or BenchmarkBody()
    async with _RUNNING:
        found: dict[str, Any] = await asyncio.to_thread(run_benchmark, serving, asked.rows, asked.seconds)
    return BenchmarkAnswer.model_validate(found)
