"""Probes."""

from typing import Annotated

from fastapi import APIRouter, Depends, Response

from app.routes import examples
from app.routes.examples import Responses, answers
from app.schemas import Live, Ready
from app.state import AppState, app_state

router = APIRouter(prefix="/health", tags=["health"])


_NOT_LIVE: Responses = {503: {"model": Live, "description": "a run of a model does not end, or CUDA is lost"}}
_NOT_READY: Responses = {503: {"model": Ready, "description": "not ready, and why"}}


@router.get("/live", response_model_exclude_none=True, responses={**answers(examples.LIVE), **_NOT_LIVE})
async def live(state: Annotated[AppState, Depends(app_state)], response: Response) -> Live:
    """Whether the process answers, the runs of its models end, and CUDA works where they run there."""
    problem = state.stuck_because()
    if problem is not None:
        response.status_code = 503
    return Live(live=problem is None, error=problem)


@router.get("/ready", response_model_exclude_none=True, responses={**answers(examples.READY), **_NOT_READY})
async def ready(state: Annotated[AppState, Depends(app_state)], response: Response) -> Ready:
    """Whether every model of the folder is served on the device that was asked for."""
    problem = state.not_ready_because()
    if problem is not None:
        response.status_code = 503
    return Ready(ready=problem is None, error=problem)
