"""``create_app``: builds the application from its settings."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.routing import Match

import app
from app.cluster.link import Place
from app.config.settings import Settings
from app.errors import AppError
from app.grpc.extra import grpc_server
from app.http.connection.context import ConnectionContext
from app.http.connection.long_bodies import BodyThreads
from app.http.cross_origin import CrossOriginGuard
from app.http.endpoint import Receive, Scope, Send
from app.http.middleware import RequestGate, error_response
from app.http.openapi import complete
from app.http.routes import benchmark, dashboard, docs, health, metrics, models, oip, predict, predict_v1, stats
from app.repository.readiness import Readiness
from app.repository.repository import Repository
from app.repository.served_model import Loader
from app.service.access import Access, describe_access
from app.service.control import ModelControl
from app.service.inference import InferenceService, ServiceOptions
from app.service.lifecycle import Lifecycle, LifecycleOptions
from app.service.mirroring import Mirroring
from app.service.state import AppState
from app.telemetry.tracing import otlp_tracing


class Application(FastAPI):
    """FastAPI application that serves inference paths in front of its middleware and routing."""

    def __init__(self, state: AppState, options: LifecycleOptions) -> None:
        super().__init__(
            title="Panther inference server",
            version=app.__version__,
            description='Serves ONNX models over HTTP. Every error response has the body `{"error": "…"}`.',
            lifespan=_lifespan,
            docs_url=None,
            redoc_url=None,
            # A redirect would contain the request's host and scheme, which differ from the server's behind a proxy.
            redirect_slashes=False,
            # Relative to the schema, which preserves a proxy's path prefix.
            servers=[{"url": "."}],
        )
        self.state.panther = state
        self.service = state.service
        self.connections = ConnectionContext(
            state.service, state.service.limits, BodyThreads(state.settings.body_thread_count())
        )
        self.lifecycle = Lifecycle(state, options, self.connections.header_cache.clear)
        self.grpc = None if state.settings.grpc_port is None else grpc_server(state)
        self._gate = RequestGate(
            super().__call__,
            state.service,
            CrossOriginGuard(state.settings.origins(), state.settings.control_hosts()),
            self._has_route,
            origins=state.settings.origins(),
            access_log=state.settings.access_log,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        await self._gate(scope, receive, send)

    def _has_route(self, scope: Scope) -> bool:
        return any(route.matches(scope)[0] is Match.FULL for route in self.router.routes)

    def openapi(self) -> dict[str, Any]:
        """The OpenAPI schema, with its authentication schemes."""
        if self.openapi_schema is None:
            complete(super().openapi())
            describe_access(super().openapi(), self.service.access)
        return super().openapi()


@asynccontextmanager
async def _lifespan(application: Application) -> AsyncIterator[None]:
    await application.lifecycle.start()
    yield
    await application.lifecycle.stop()


def create_app(
    settings: Settings | None = None, *, place: Place | None = None, on_loaded: Callable[[], None] = lambda: None
) -> Application:
    """Make the application.

    Args:
        settings: Settings of the server; by default read from the environment.
        place: Place among the workers of a server; None for a single process.
        on_loaded: Called once the models are loaded.
    """
    settings = settings if settings is not None else Settings()
    loader = Loader(settings, 0 if place is None else place.slot)
    readiness = Readiness(settings.required(), strict=settings.strict_readiness)
    mirroring = Mirroring.of(settings)
    folder = Path(str(settings.model_dir)) if mirroring is None else mirroring.mirror.folder
    repository = Repository(folder, settings.version_policy, loader, readiness)
    repository.starting = True
    service = InferenceService(
        repository,
        ServiceOptions.of(settings),
        access=Access.of(settings),
        bodies=None if loader.device is None else loader.device.bodies,
        tracing=otlp_tracing() if settings.tracing == "otlp" else None,
    )
    link = None if place is None else place.link
    state = AppState(
        settings, loader, repository, service, ModelControl(settings, repository, link, mirroring), link, mirroring
    )
    load_first = place is not None and place.load_first
    application = Application(state, LifecycleOptions(load_first=load_first, on_loaded=on_loaded))
    for router in (
        predict.router,
        models.router,
        stats.router,
        benchmark.router,
        metrics.router,
        oip.router,
        predict_v1.router,
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
        return _error(404, f"unknown path {path!r}; /docs lists the paths")
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
