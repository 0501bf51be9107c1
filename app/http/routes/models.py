"""``/models``: the models of the repository, served or not."""

from typing import Any

from fastapi import APIRouter

from app.errors import ModelNotFoundError
from app.http.routes import examples
from app.http.routes.dependencies import SharedState
from app.http.routes.examples import answers
from app.reports.model_summary import model_summary
from app.service.inference import choose_default
from app.service.state import AppState

router = APIRouter(tags=["models"])


def _default(state: AppState) -> str | None:
    try:
        return choose_default(state.repository, state.settings.default_model)
    except ModelNotFoundError:
        return None


@router.get("/models", responses=answers(examples.MODELS))
async def list_models(state: SharedState) -> dict[str, Any]:
    """Every model of the repository, served or not."""
    default = _default(state)
    entries = state.repository.entries.values()
    return {"models": [model_summary(state.repository, entry, default) for entry in entries]}


@router.get("/models/{name}", responses=answers(examples.MODEL, named=True))
async def show_model(name: str, state: SharedState) -> dict[str, Any]:
    """One model: its inputs and outputs, labels and versions."""
    return model_summary(state.repository, state.repository.entry(name), _default(state))
