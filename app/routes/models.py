"""What is served."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends

from app.errors import ModelNotFoundError
from app.inference import choose_default
from app.routes import examples
from app.routes.examples import answers
from app.state import AppState, app_state
from app.stats import model_summary

router = APIRouter(tags=["models"])
State = Annotated[AppState, Depends(app_state)]


def _default(state: AppState) -> str | None:
    try:
        return choose_default(state.repository.names(), state.settings.default_model)
    except ModelNotFoundError:
        return None


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
