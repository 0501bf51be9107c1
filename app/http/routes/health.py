"""``/health``: liveness and readiness."""

from fastapi import APIRouter, Response

from app.http.routes import examples
from app.http.routes.dependencies import SharedState
from app.http.routes.examples import Responses, answers
from app.http.schemas import Liveness, Readiness

router = APIRouter(prefix="/health", tags=["health"])

_NOT_LIVE: Responses = {503: {"model": Liveness, "description": "a run of a model is stuck, or CUDA is lost"}}
_NOT_READY: Responses = {503: {"model": Readiness, "description": "not ready, with the reason"}}


@router.get("/live", response_model_exclude_none=True, responses={**answers(examples.LIVE), **_NOT_LIVE})
async def live(state: SharedState, response: Response) -> Liveness:
    """Whether the process responds, model runs end, and CUDA, if used, works."""
    problem = state.stuck_because()
    if problem is not None:
        response.status_code = 503
    return Liveness(live=problem is None, error=problem)


@router.get("/ready", response_model_exclude_none=True, responses={**answers(examples.READY), **_NOT_READY})
async def ready(state: SharedState, response: Response) -> Readiness:
    """Whether the required models are served, on the requested device."""
    problem = state.not_ready_because()
    if problem is not None:
        response.status_code = 503
    return Readiness(ready=problem is None, error=problem)
