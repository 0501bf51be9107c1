"""``/stats``: what every model saves and how it fares, as JSON or for a terminal."""

import time
from typing import Annotated, Any, Literal

import onnxruntime as ort
from fastapi import APIRouter, Depends, Query
from fastapi.responses import JSONResponse, PlainTextResponse, Response

import app
from app.figures import Figures
from app.routes import examples
from app.routes.examples import Responses, answers
from app.state import AppState, app_state
from app.stats import version_report
from app.stats_schema import ModelStatsAnswer, StatsAnswer
from app.stats_table import stats_table
from app.versions import Entry

router = APIRouter(tags=["models"])
State = Annotated[AppState, Depends(app_state)]
Form = Annotated[Literal["json", "table"], Query(alias="format", description="table: plain text for a terminal")]
Histograms = Annotated[bool, Query(description="also give the histograms of the times, to tell recent ones apart")]
Nodes = Annotated[bool, Query(description="also name the nodes that each execution provider runs")]


def _answers(example: Any, model: type, *, named: bool = False) -> Responses:
    found = answers(example, named=named)
    found[200]["model"] = model
    found[200]["content"]["text/plain"] = {"schema": {"type": "string"}}
    return found


def server_report(state: AppState, figures: Figures) -> dict[str, Any]:
    """What the server is and runs on."""
    problem = state.not_ready_because()
    device = state.loader.device
    return {
        "version": app.__version__,
        "ready": problem is None,
        "not_ready_because": problem,
        "started_at_s": state.started_at_s,
        "uptime_s": round(time.monotonic() - state.started_clock, 3),
        "device": {
            "requested": state.settings.device,
            "providers": list(device.providers) if device else None,
            "reason": device.reason if device else state.loader.device_problem,
            "available_providers": ort.get_available_providers(),
            "gpu": device.gpu() if device else None,
        },
        "model_control": state.settings.model_control,
        "workers": state.settings.workers,
        "num_threads": state.loader.num_threads,
        "resident_bytes": _whole(figures.process.get("process_resident_memory_bytes")),
        "cpu_seconds": figures.process.get("process_cpu_seconds_total"),
        "failures_without_model": _by_reason(figures),
        "onnxruntime": ort.__version__,
    }


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)


def _by_reason(figures: Figures) -> dict[str, int]:
    total: dict[str, int] = {}
    for (_, reason), count in figures.unrouted.items():
        total[reason] = total.get(reason, 0) + count
    return total


def model_reports(
    entry: Entry, figures: Figures, *, histograms: bool = False, nodes: bool = False
) -> list[dict[str, Any]]:
    """A model's versions."""
    reports = []
    for item in entry.versions.values():
        key = entry.name, item.version
        reports.append(
            version_report(
                entry, item, figures.statistics.get(key), figures.depths[key], histograms=histograms, nodes=nodes
            )
        )
    return reports


def _answer(document: dict[str, Any], form: str) -> Response:
    return PlainTextResponse(stats_table(document)) if form == "table" else JSONResponse(document)


@router.get("/stats", response_model=None, responses=_answers(examples.STATS, StatsAnswer))
async def stats(state: State, form: Form = "json", *, histograms: Histograms = False, nodes: Nodes = False) -> Response:
    """What every model saves, per layer and in all, at what price, and the live figures (docs/stats.md)."""
    figures = await state.all_figures()
    entries = list(state.repository.entries.values())
    reports = [
        report for entry in entries for report in model_reports(entry, figures, histograms=histograms, nodes=nodes)
    ]
    return _answer({"server": server_report(state, figures), "models": reports}, form)


@router.get(
    "/models/{name}/stats",
    response_model=None,
    responses=_answers(examples.MODEL_STATS, ModelStatsAnswer, named=True),
)
async def model_stats(
    state: State, name: str, form: Form = "json", *, histograms: Histograms = False, nodes: Nodes = False
) -> Response:
    """The same for one model and its versions."""
    entry = state.repository.entry(name)
    reports = model_reports(entry, await state.all_figures(), histograms=histograms, nodes=nodes)
    return _answer({"models": reports}, form)
