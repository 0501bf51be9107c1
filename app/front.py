"""What stands in front of FastAPI: request ids, API keys, CORS, the limit of a body, the log of requests."""

import time
from collections.abc import Mapping
from urllib.parse import quote

from fastapi import HTTPException
from fastapi.responses import JSONResponse
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.access import changes_something
from app.asgi import answer
from app.errors import AccessForbiddenError, AppError, error_headers, status_of
from app.inference import InferenceService
from app.limits import OTHER_BODY_BYTES
from app.logs import log_request, request_id_of_task

_OWN_PAGES = (b"same-origin", b"none")  # none: the user typed the address
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
    """The answer for an error."""
    response = JSONResponse({"error": str(error)}, status_of(error))
    response.raw_headers += error_headers(error)
    return response


class Front:
    """An ASGI application in front of another.

    Inference requests are answered at once, others by the application behind it once their key is seen to be right.

    Args:
        behind: the application for all else.
        service: answers inference requests, and knows who may ask.
        origins: origins whose pages may ask (CORS).
        access_log: whether each request gets a line in the log.
    """

    def __init__(
        self,
        behind: ASGIApp,
        service: InferenceService,
        origins: tuple[str, ...] = (),
        *,
        access_log: bool = False,
    ) -> None:
        self._behind = behind
        self._service = service
        self._access_log = access_log
        self._origins = frozenset(origins)
        self._infer: ASGIApp = self._answer_inference
        self._other: ASGIApp = self._answer_other
        if origins:
            self._infer, self._other = _with_cors(self._infer, origins), _with_cors(self._other, origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
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
            self._check_page(scope, headers)
            if self._service.access is not None:
                self._service.access.check(scope["method"], scope["path"], headers)
            self._service.check_length(headers)
        except AppError as error:
            response = error_response(error)
            response.headers["connection"] = "close"  # what comes of a body is not read
            await response(scope, receive, send)
            return
        if scope["method"] == "HEAD":
            # As GET is; the server beneath knows what was asked and leaves the body out.
            scope = {**scope, "method": "GET"}
        await self._behind(scope, self._limited(receive), send)

    def _check_page(self, scope: Scope, headers: Mapping[bytes, bytes]) -> None:
        """See that no page of another origin changes what is served.

        A browser sends some requests for any page without asking, to a server on its own machine too; it only keeps the
        answer from the page. It says whose page it is, though, where the server is local or behind TLS.

        Raises:
            AccessForbiddenError: it is such a request.
        """
        if not changes_something(scope["method"], scope["path"]):
            return
        if headers.get(b"sec-fetch-site", b"same-origin") in _OWN_PAGES:
            return
        origin = headers.get(b"origin", b"").decode("latin-1")
        if origin not in self._origins and "*" not in self._origins:
            raise AccessForbiddenError(
                f"a page of {origin[:100] or 'another origin'} may not change what is served; "
                "PANTHER_CORS_ORIGINS names those that may"
            )

    def _limited(self, receive: Receive) -> Receive:
        """The same messages, until the body is longer than it may be."""
        size, most = 0, min(OTHER_BODY_BYTES, self._service.max_body_bytes)

        async def receive_some() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > most:
                said = f"the body is larger than {most} bytes, the most for what is no inference"
                raise HTTPException(413, said, {"connection": "close"})
            return message

        return receive_some


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
