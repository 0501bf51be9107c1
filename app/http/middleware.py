"""ASGI middleware in front of FastAPI: request ids, API keys, CORS, the body limit, the access log."""

import time
from collections.abc import Callable
from urllib.parse import quote

from fastapi import HTTPException
from fastapi.responses import JSONResponse
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.config.limits import OTHER_BODY_BYTES
from app.engine.codec import Body
from app.errors import AppError, OverloadedError, error_headers, status_of
from app.http.cross_origin import CrossOriginGuard
from app.http.endpoint import answer
from app.service.access import changes_something
from app.service.admission import Reservation, join
from app.service.inference import InferenceService
from app.telemetry.logs import log_request, request_id_of_task

SENT_BY_BROWSERS = (
    "Accept-Encoding",
    "Authorization",
    "Content-Encoding",
    "Inference-Header-Content-Length",
    "Traceparent",
    "X-API-Key",
    "X-Request-ID",
)
READ_BY_BROWSERS = (
    "Content-Encoding",
    "Inference-Header-Content-Length",
    "Retry-After",
    "WWW-Authenticate",
    "X-Request-ID",
    "X-Shape",
)


def error_response(error: AppError) -> JSONResponse:
    """The response for an error."""
    response = JSONResponse({"error": str(error)}, status_of(error))
    response.raw_headers += error_headers(error)
    return response


class RequestGate:
    """ASGI middleware in front of the application.

    It serves inference requests directly, and passes on others after checking their key.

    Args:
        behind: The application for all other requests.
        service: The inference service, which also checks API keys.
        guard: Checks requests that change the served models.
        has_route: Whether the application has a route for a request; without one, the request changes nothing.
        origins: Origins of pages that may read responses (CORS).
        access_log: Whether to log each request.
    """

    def __init__(
        self,
        behind: ASGIApp,
        service: InferenceService,
        guard: CrossOriginGuard,
        has_route: Callable[[Scope], bool],
        origins: tuple[str, ...] = (),
        *,
        access_log: bool = False,
    ) -> None:
        self._behind = behind
        self._service = service
        self._access_log = access_log
        self._guard = guard
        self._has_route = has_route
        self._infer: ASGIApp = self._answer_inference
        self._other: ASGIApp = self._answer_other
        if origins:
            self._infer, self._other = _with_cors(self._infer, origins), _with_cors(self._other, origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._behind(scope, receive, send)
            return
        if self._access_log:
            send = _logged(scope, send)
        if scope["method"] == "POST" and self._service.target(scope["path"]) is not None:
            await self._infer(scope, receive, send)
            return
        request_id = self._service.request_ids.of(dict(scope["headers"]))
        request_id_of_task.set(request_id.decode())

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", request_id)]
            await send(message)

        await self._other(scope, receive, send_with_id)

    async def _answer_inference(self, scope: Scope, receive: Receive, send: Send) -> None:
        target = self._service.target(scope["path"])
        if target is not None:
            await answer(self._service, target, scope, receive, send)

    async def _answer_other(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope["headers"])
        try:
            if changes_something(scope["method"], scope["path"]) and self._has_route(scope):
                self._guard.check(headers)
            if self._service.access is not None:
                self._service.access.check(scope["method"], scope["path"], headers)
            self._service.check_length(headers)
        except AppError as error:
            response = error_response(error)
            response.headers["connection"] = "close"  # the body is not read
            await response(scope, receive, send)
            return
        if scope["method"] == "HEAD":
            # Handle HEAD like GET; the server below leaves out the body.
            scope = {**scope, "method": "GET"}
        reservation = Reservation(self._service.admission)
        try:
            await self._behind(scope, self._whole_body(receive, reservation), send)
        finally:
            reservation.release()

    def _whole_body(self, receive: Receive, reservation: Reservation) -> Receive:
        """The same messages, with the body in a single one; a body over the limit is refused.

        Buffered piece by piece, a body of small pieces would take many times its length.
        """
        most = min(OTHER_BODY_BYTES, self._service.max_body_bytes)
        read = False

        async def receive_whole() -> Message:
            nonlocal read
            message = await receive()
            if read or message["type"] != "http.request":
                return message
            read = True
            body: Body = b""
            while True:
                piece = message.get("body", b"")
                if len(body) + len(piece) > most:
                    said = f"the body is larger than {most} bytes, the limit for requests other than inference"
                    raise HTTPException(413, said, {"connection": "close"})
                try:
                    body = join(body, piece, reservation)
                except OverloadedError as error:
                    raise HTTPException(503, str(error), {"retry-after": "1", "connection": "close"}) from None
                if not message.get("more_body", False):
                    return {"type": "http.request", "body": bytes(body), "more_body": False}
                message = await receive()
                if message["type"] != "http.request":
                    return message

        return receive_whole


def _with_cors(application: ASGIApp, origins: tuple[str, ...]) -> ASGIApp:
    return CORSMiddleware(
        application,
        allow_origins=origins,
        allow_methods=("GET", "POST"),
        allow_headers=SENT_BY_BROWSERS,
        expose_headers=READ_BY_BROWSERS,
    )


def _logged(scope: Scope, send: Send) -> Send:
    began = time.perf_counter()
    seen: dict[str, bytes | int] = {}

    async def send_and_log(message: Message) -> None:
        if message["type"] == "http.response.start":
            seen["status"] = message["status"]
            seen["id"] = dict(message.get("headers", ())).get(b"x-request-id", b"")
        await send(message)
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            path = scope.get("raw_path") or quote(scope["path"]).encode()
            client = scope.get("client")
            log_request(
                scope["method"],
                path,
                int(seen["status"]),
                time.perf_counter() - began,
                bytes(seen["id"]),
                client[0] if client else None,
            )

    return send_and_log
