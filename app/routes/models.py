"""What is served, what it saves, and how it fares."""

import time
from typing import Annotated, Any

import onnxruntime as ort
from fastapi import APIRouter, Depends

import app
from app.errors import ModelNotFoundError
from app.inference import choose_default
from app.repository import Entry
from app.routes import examples
from app.routes.examples import answers
from app.state import AppState, app_state
from app.stats import model_summary, version_report

router = APIRouter(tags=["models"])
State = Annotated[AppState, Depends(app_state)]


def _default(state: AppState) -> str | None:
    try:
        return choose_default(state.repository.names(), state.settings.default_model)
    except ModelNotFoundError:
        return None


async def _model_stats(state: AppState, entry: Entry) -> list[dict[str, Any]]:
    figures = await state.statistics()
    return [version_report(entry, item, figures.get((entry.name, item.version))) for item in entry.versions.values()]


@router.get("/models", responses=answers(examples.MODELS))
async def list_models(state: State) -> dict[str, Any]:
    """Every model of the folder, served or not."""
    default = _default(state)
    entries = state.repository.entries.values()
    return {"models": [model_summary(state.repository, entry, default) for entry in entries]}


@router.get("/models/{name}", responses=answers(examples.MODEL, named=True))
async def show_model(name: str, state: State) -> dict[str, Any]:
    """One model: its inputs and outputs, labels and versions."""
    return model_summary(state.repository, state.repository.entry(name), _default(state))


@router.get("/stats", responses=answers(examples.STATS))
async def stats(state: State) -> dict[str, Any]:
    """Parameter savings of every model, per layer and in all, and the live figures."""
    entries = list(state.repository.entries.values())
    return {
        "server": {
            "version": app.__version__,
            "ready": state.not_ready_because() is None,
            "not_ready_because": state.not_ready_because(),
            "started_at_s": state.started_at_s,
            "uptime_s": round(time.monotonic() - state.started_clock, 3),
            "device": {
                "requested": state.settings.device,
                "providers": list(state.loader.device.providers) if state.loader.device else None,
                "reason": state.loader.device.reason if state.loader.device else state.loader.device_problem,
                "available_providers": ort.get_available_providers(),
            },
            "workers": state.settings.workers,
            "num_threads": state.loader.num_threads,
            "onnxruntime": ort.__version__,
        },
        "models": [report for entry in entries for report in await _model_stats(state, entry)],
    }


@router.get("/models/{name}/stats", responses=answers(examples.MODEL_STATS, named=True))
async def model_stats(name: str, state: State) -> dict[str, Any]:
    """The same for one model and its versions."""
    return {"models": await _model_stats(state, state.repository.entry(name))}
