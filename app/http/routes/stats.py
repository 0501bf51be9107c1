"""``/stats``: savings, runtime and live counters of every model, as JSON or as a table for a terminal."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from fastapi.responses import JSONResponse, PlainTextResponse, Response

from app.http.routes import examples
from app.http.routes.dependencies import SharedState
from app.http.routes.examples import Responses, answers
from app.reports.stats import ModelStatsAnswer, ServerStats, StatsAnswer, stats_document, version_stats
from app.reports.stats_table import stats_table

router = APIRouter(tags=["models"])
Form = Annotated[Literal["json", "table"], Query(alias="format", description="table: plain text for a terminal")]
Histograms = Annotated[bool, Query(description="also return the histograms of the times")]
Nodes = Annotated[bool, Query(description="also name the nodes that each execution provider runs")]
Live = Annotated[bool, Query(description="only states and live counters, for polling")]


def _responses(example: dict[str, Any], model: type, *, named: bool = False) -> Responses:
    found = answers(example, named=named)
    found[200]["model"] = model
    found[200]["content"]["text/plain"] = {"schema": {"type": "string"}}
    return found


def _respond(answer: StatsAnswer | ModelStatsAnswer, form: str, *, histograms: bool, nodes: bool) -> Response:
    if form == "table":
        return PlainTextResponse(stats_table(answer))
    return JSONResponse(stats_document(answer, histograms=histograms, nodes=nodes))


@router.get("/stats", response_model=None, responses=_responses(examples.STATS, StatsAnswer))
async def stats(
    state: SharedState,
    form: Form = "json",
    *,
    histograms: Histograms = False,
    nodes: Nodes = False,
    live: Live = False,
) -> Response:
    """Savings per layer and in total, quality, runtime and live counters of every model (docs/stats.md)."""
    counters = await state.all_counters()
    entries = state.repository.entries.values()
    models = [
        version_stats(entry, version, counters, live_only=live)
        for entry in entries
        for version in entry.versions.values()
    ]
    answer = StatsAnswer(server=ServerStats.of(state, counters), models=models)
    return _respond(answer, form, histograms=histograms, nodes=nodes)


@router.get(
    "/models/{name}/stats",
    response_model=None,
    responses=_responses(examples.MODEL_STATS, ModelStatsAnswer, named=True),
)
async def model_stats(
    state: SharedState, name: str, form: Form = "json", *, histograms: Histograms = False, nodes: Nodes = False
) -> Response:
    """Stats of one model and its versions."""
    entry = state.repository.entry(name)
    counters = await state.all_counters()
    answer = ModelStatsAnswer(models=[version_stats(entry, item, counters) for item in entry.versions.values()])
    return _respond(answer, form, histograms=histograms, nodes=nodes)
