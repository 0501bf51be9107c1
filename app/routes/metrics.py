"""Prometheus."""

from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response

from app.metrics import scrape
from app.routes.examples import Responses
from app.state import AppState, app_state

router = APIRouter(tags=["health"])
_EXAMPLE = """# HELP panther_requests_total Requests by outcome.
# TYPE panther_requests_total counter
panther_requests_total{model="digits",outcome="success",protocol="plain",version="1"} 3.0
"""
_ANSWERS: Responses = {200: {"content": {"text/plain": {"example": _EXAMPLE}}}}


@router.get("/metrics", responses=_ANSWERS, response_class=Response)
async def metrics(request: Request, state: Annotated[AppState, Depends(app_state)]) -> Response:
    """Metrics for Prometheus, in its own format or OpenMetrics; docs/metrics.md lists them."""
    text, content_type = await scrape(state, request.headers.get("accept", ""))
    return Response(text, media_type=content_type)
