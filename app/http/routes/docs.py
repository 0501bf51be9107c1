"""The page at ``/docs``: Swagger UI with its assets served from here, so it works without internet access.

All its links are relative, so it works behind a proxy that adds a path prefix. Its content security policy allows
scripts from this server only. See docs/decisions/0056-swagger-ui-from-fastapi-offline.md.
"""

import base64
import hashlib
import importlib.util
import re
from pathlib import Path

from fastapi import APIRouter, FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse
from starlette.staticfiles import StaticFiles

router = APIRouter()
ASSETS = "/docs/assets"
_INLINE_SCRIPT = re.compile(r"<script>(.*?)</script>", re.DOTALL)


def _assets_dir() -> Path:
    """Folder of Swagger UI in the package fastapi-offline; only its files are served, the package is not imported."""
    spec = importlib.util.find_spec("fastapi_offline")
    if spec is None or spec.origin is None:
        raise RuntimeError("the package fastapi-offline is not installed")
    return Path(spec.origin).parent / "static"


def content_security_policy(page: str) -> str:
    """The policy of the page: scripts from this server, and the page's inline scripts, by their hashes."""
    digests = [hashlib.sha256(script.encode()).digest() for script in _INLINE_SCRIPT.findall(page)]
    hashes = "".join(f" 'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)
    # Swagger UI adds inline styles, and its icons are data URLs.
    return (
        f"default-src 'none'; script-src 'self'{hashes}; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


@router.get("/docs", include_in_schema=False)
async def docs_page() -> HTMLResponse:
    """Interactive documentation of every route."""
    page = get_swagger_ui_html(
        openapi_url="openapi.json",
        title="Panther inference server",
        swagger_js_url="docs/assets/swagger-ui-bundle.js",
        swagger_css_url="docs/assets/swagger-ui.css",
        swagger_favicon_url="docs/assets/favicon.png",
        # Otherwise Swagger UI sends the schema to its vendor's host for validation.
        swagger_ui_parameters={"validatorUrl": None, "tryItOutEnabled": True},
    )
    page.headers["content-security-policy"] = content_security_policy(bytes(page.body).decode())
    page.headers["referrer-policy"] = "no-referrer"
    page.headers["x-content-type-options"] = "nosniff"
    return page


def mount_docs(application: FastAPI) -> None:
    """Add the page and its assets."""
    application.include_router(router)
    application.mount(ASSETS, StaticFiles(directory=_assets_dir()), name="docs-assets")
