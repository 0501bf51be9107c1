"""``/metrics``: the scrape target of Prometheus."""

from fastapi import APIRouter, Request, Response

from app.http.routes.dependencies import SharedState
from app.http.routes.examples import Responses
from app.reports.metrics import scrape

router = APIRouter(tags=["health"])
_EXAMPLE = """# HELP panther_requests_total Requests by outcome.
# TYPE panther_requests_total counter
panther_requests_total{model="digits",outcome="success",protocol="plain",version="1"} 3.0
"""
_ANSWERS: Responses = {200: {"content": {"text/plain": {"example": _EXAMPLE}}}}


@router.get("/metrics", responses=_ANSWERS, response_class=Response)
async def metrics(request: Request, state: SharedState) -> Response:
    """Metrics for Prometheus, in its own format or OpenMetrics; docs/metrics.md lists them."""
    text, content_type = await scrape(state, request.headers.get("accept", ""))
    return Response(text, media_type=content_type)
