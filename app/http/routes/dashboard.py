"""The dashboard at ``/``: static files that send requests to this server only."""

import os
from pathlib import Path

from fastapi import APIRouter, FastAPI
from fastapi.responses import FileResponse
from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

FOLDER = Path(__file__).parents[1] / "dashboard"
HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "cross-origin-opener-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    # The browser revalidates each time and gets 304 if nothing changed, so an upgrade shows at once.
    "cache-control": "no-cache",
}
router = APIRouter()


class _Assets(StaticFiles):
    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        response.headers.update(HEADERS)
        return response

    def lookup_path(self, path: str) -> tuple[str, os.stat_result | None]:
        # The page itself is only at /.
        return ("", None) if path == "index.html" else super().lookup_path(path)


@router.get("/", include_in_schema=False)
async def page() -> FileResponse:
    """The page."""
    return FileResponse(FOLDER / "index.html", headers=HEADERS)


def mount_dashboard(application: FastAPI) -> None:
    """Add the page and its assets."""
    application.include_router(router)
    application.mount("/dashboard", _Assets(directory=FOLDER), name="dashboard")
