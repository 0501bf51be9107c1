"""The inference service as an ASGI endpoint, in front of FastAPI's middleware."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, MutableMapping
from typing import Any

from starlette.responses import Response

from app.engine.codec import Body, Headers
from app.errors import AppError
from app.service.admission import Reservation, join
from app.service.inference import HttpResponse, InferenceService, Target

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


async def answer(service: InferenceService, target: Target, scope: Scope, receive: Receive, send: Send) -> None:
    """Serve one inference request."""
    headers = dict(scope["headers"])
    reservation = Reservation(service.admission)
    try:
        body = await read_body(service, headers, receive, reservation)
    except AppError as error:
        reservation.release()
        await _send(send, _refused(service, target, headers, error), close=True)  # the rest of the body stays unread
        return
    if body is None:
        return
    inferring = service.infer(target, headers, scope["query_string"], body, reservation)
    del body  # a run that reads it holds a reference
    found = await _unless_disconnected(inferring, receive)
    if found is None:
        return
    reservation.release()
    await _send(send, found)


def _refused(service: InferenceService, target: Target, headers: Headers, error: AppError) -> HttpResponse:
    responses: list[HttpResponse] = []
    service.refuse(target, headers, lambda *refusal: responses.append(refusal), error)
    return responses[0]


async def _send(send: Send, found: HttpResponse, *, close: bool = False) -> None:
    status, fields, content = found
    fields.append((b"content-length", b"%d" % len(content)))
    if close:
        fields.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": status, "headers": fields})
    await send({"type": "http.response.body", "body": bytes(content)})


async def _unless_disconnected(inferring: Coroutine[Any, Any, HttpResponse], receive: Receive) -> HttpResponse | None:
    """The response; None if the client disconnects before, which cancels its request."""
    infer = asyncio.ensure_future(inferring)
    leave = asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait((infer, leave), return_when=asyncio.FIRST_COMPLETED)
        return infer.result() if infer.done() else None
    finally:
        leave.cancel()
        infer.cancel()


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def read_body(
    service: InferenceService, headers: dict[bytes, bytes], receive: Receive, reservation: Reservation
) -> Body | None:
    """The whole body; None if the client disconnected.

    Raises:
        UnauthorizedError: See ``InferenceService.admit``; the body is not read.
        BodyTooLargeError: The body exceeds the limit; its rest is not read.
        OverloadedError: The byte budget is exhausted.
    """
    service.admit(headers)
    body: Body = b""
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        piece: bytes = message.get("body", b"")
        more = message.get("more_body", False)
        if len(body) + len(piece) > service.max_body_bytes:
            raise service.too_large()
        body = join(body, piece, reservation)
    return body


class Responder(Response):
    """Inference as a Starlette response, for the routes in OpenAPI."""

    def __init__(self, service: InferenceService, target: Target) -> None:
        super().__init__()
        self._service = service
        self._target = target

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response."""
        await answer(self._service, self._target, scope, receive, send)
