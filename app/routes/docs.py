"""The page at ``/docs``: Swagger UI with its assets served from here, so that it works with no internet."""

import importlib.util
from pathlib import Path

from fastapi import APIRouter, FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse
from starlette.staticfiles import StaticFiles

router = APIRouter()
ASSETS = "/docs/assets"


def _assets_dir() -> Path:
    """Where the package fastapi-offline keeps Swagger UI; it is not imported, only its files are served."""
    spec = importlib.util.find_spec("fastapi_offline")
    if spec is None or spec.origin is None:
        raise RuntimeError("the package fastapi-offline is not installed")
    return Path(spec.origin).parent / "static"


@router.get("/docs", include_in_schema=False)
async def docs_page() -> HTMLResponse:
    """Every route, to read and to try."""
    return get_swagger_ui_html(
        openapi_url="/openapi.json",
        title="Panther inference server",
        swagger_js_url=f"{ASSETS}/swagger-ui-bundle.js",
        swagger_css_url=f"{ASSETS}/swagger-ui.css",
        swagger_favicon_url=f"{ASSETS}/favicon.png",
        # Swagger UI would have the schema validated by its makers' host.
        swagger_ui_parameters={"validatorUrl": None, "tryItOutEnabled": True},
    )


def mount_docs(application: FastAPI) -> None:
    """Add the page and its assets."""
    application.include_router(router)
    application.mount(ASSETS, StaticFiles(directory=_assets_dir()), name="docs-assets")
