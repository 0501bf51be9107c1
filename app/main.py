"""``create_app``: the application, put together from its settings."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

import app
from app.access import Access, describe_access, watch_keys
from app.asgi import Receive, Scope, Send
from app.description import complete
from app.errors import AppError
from app.front import Front, error_response
from app.inference import InferenceService
from app.limits import Limits
from app.peers import Peers
from app.repository import Repository
from app.retries import Retries
from app.routes import benchmark, dashboard, docs, health, metrics, models, oip, predict, stats
from app.serving import Loader
from app.settings import Settings
from app.slots import claim_slot
from app.state import AppState
from app.tracing import otlp_tracing
from app.trial import trials
from app.watcher import Watcher

log = logging.getLogger(__name__)


class Application(FastAPI):
    """FastAPI, with the inference paths answered in front of its middleware and routing."""

    def __init__(self, state: AppState) -> None:
        super().__init__(
            title="Panther inference server",
            version=app.__version__,
            description='Serves sketched models from ONNX files; errors are always `{"error": "…"}`.',
            lifespan=_lifespan,
            docs_url=None,
            redoc_url=None,
        )
        self.state.panther = state
        self.service = state.service
        self._front = Front(
            super().__call__,
            state.service,
            origins=state.settings.origins(),
            access_log=state.settings.access_log,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        await self._front(scope, receive, send)

    def openapi(self) -> dict[str, Any]:
        """The schema, with what it takes to be let in."""
        if self.openapi_schema is None:
            complete(super().openapi())
            describe_access(super().openapi(), self.service.access)
        return super().openapi()


@asynccontextmanager
async def _lifespan(application: FastAPI) -> AsyncIterator[None]:
    state: AppState = application.state.panther
    if state.peers is not None:
        await state.peers.start()
    keys = asyncio.create_task(watch_keys(state.service))
    watcher = Watcher(state.settings.model_dir) if state.settings.model_control == "watch" else None
    loading = asyncio.create_task(_load(state))
    running = asyncio.create_task(_run(state, loading, watcher))
    if state.load_first:
        await asyncio.wait({loading})
    yield
    keys.cancel()
    state.repository.end()
    trials.cut()
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running
    if state.peers is not None:
        await state.peers.stop()
    for serving in state.repository.servings():
        serving.batcher.close()
    if state.service.tracing is not None:
        await asyncio.to_thread(state.service.tracing.close)


async def _run(state: AppState, loading: asyncio.Task[None], watcher: Watcher | None) -> None:
    """Follow the folder where that is wished, once it is loaded."""
    await loading
    if watcher is not None:
        await state.watch(watcher, Retries())


async def _load(state: AppState) -> None:
    """Load beside the event loop, so that the probes answer meanwhile."""
    loader = state.loader
    if loader.device_problem is not None:
        log.error("not ready: %s", loader.device_problem)
    elif loader.device is not None and loader.device.requested == "auto" and loader.device.reason is not None:
        log.warning("device=auto: running on the CPU, because %s", loader.device.reason)
    try:
        await state.load_all()
    except OSError as error:
        log.error("the model folder can't be read: %s", error.strerror)
    state.repository.starting = False
    state.on_loaded()
    if state.peers is not None:
        state.peers.tell_loaded()
    problem = state.not_ready_because(alone=True)
    if state.draining:
        return
    if problem is None:
        log.info("ready: serving %s", ", ".join(state.repository.names()))
    else:
        log.error("not ready: %s", problem)


def create_app(settings: Settings | None = None, *, peers_folder: Path | None = None) -> Application:
    """Make the application.

    Args:
        settings: all it needs to know; by default read from the environment.
        peers_folder: where several workers of one server find one another.
    """
    settings = settings if settings is not None else Settings()
    loader = Loader(settings, claim_slot(peers_folder, settings.workers) if peers_folder is not None else 0)
    repository = Repository(settings.model_dir, settings.version_policy, loader)
    repository.starting = True
    service = InferenceService(
        repository,
        settings.default_model,
        settings.max_body_bytes,
        settings.compression_min_bytes,
        settings.max_queue_bytes,
    )
    service.access = Access.of(settings)
    service.limits = Limits.of(settings)
    service.bodies = None if loader.device is None else loader.device.bodies
    service.access_log = settings.access_log
    service.cross_origin = bool(settings.origins())
    if settings.tracing == "otlp":
        service.tracing = otlp_tracing()
    state = AppState(settings, loader, repository, service)
    if peers_folder is not None:
        state.peers = Peers(peers_folder, state.answer_peer)
    application = Application(state)
    for router in (
        predict.router,
        models.router,
        stats.router,
        benchmark.router,
        metrics.router,
        oip.router,
        health.router,
    ):
        application.include_router(router)
    docs.mount_docs(application)
    dashboard.mount_dashboard(application)
    application.add_exception_handler(AppError, _app_error)
    application.add_exception_handler(HTTPException, _http_error)
    application.add_exception_handler(RequestValidationError, _validation_error)
    application.add_exception_handler(Exception, _defect)
    return application


def _error(status: int, message: str, headers: dict[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"error": message}, status, headers)


async def _app_error(_: Request, error: Exception) -> JSONResponse:
    return error_response(error) if isinstance(error, AppError) else _error(500, "internal error")


async def _http_error(request: Request, error: Exception) -> JSONResponse:
    status = error.status_code if isinstance(error, HTTPException) else 500
    headers = dict(error.headers or {}) if isinstance(error, HTTPException) else {}
    path = request.url.path[:200]
    if status == 404:
        return _error(404, f"there is no path {path!r}; /docs lists those there are")
    if status == 405:
        allowed = headers.get("allow", headers.get("Allow", ""))
        return _error(405, f"method {request.method} is not allowed for {path!r}; allowed: {allowed}", headers)
    return _error(status, str(error.detail) if isinstance(error, HTTPException) else "internal error", headers)


async def _validation_error(_: Request, error: Exception) -> JSONResponse:
    first = error.errors()[0] if isinstance(error, RequestValidationError) else {}
    where = ".".join(str(part) for part in first.get("loc", ()))
    return _error(400, f"{where}: {first.get('msg', 'invalid request')}")


async def _defect(_: Request, __: Exception) -> JSONResponse:
    return _error(500, "internal error")
