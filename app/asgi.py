"""The inference service as an ASGI endpoint, answered in front of FastAPI's middleware."""

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from starlette.responses import Response

from app.codec import HeaderList
from app.errors import AppError
from app.inference import Exchange, InferenceService, Target
from app.intake import Intake

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Answer = tuple[int, HeaderList, bytes]


async def answer(service: InferenceService, target: Target, scope: Scope, receive: Receive, send: Send) -> None:
    """Serve one inference request."""
    headers = dict(scope["headers"])
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[Answer] = loop.create_future()

    def respond(status: int, fields: HeaderList, content: bytes) -> None:
        if not ended.done():
            ended.set_result((status, fields, content))

    close = False
    holding = Holding(service.intake)
    try:
        try:
            body = await read_body(service, headers, receive, holding)
        except AppError as error:
            close = True  # the rest of the body is not read
            Exchange(service, headers, respond, oip=target.oip).fail(error)
        else:
            if body is None:
                return
            exchange = service.start(target, headers, scope["query_string"], body, respond)
            if not ended.done() and await _gone(receive, ended):
                exchange.cancel()
                return
        status, fields, content = await ended
    finally:
        holding.release()
    fields.append((b"content-length", b"%d" % len(content)))
    if close:
        fields.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": status, "headers": fields})
    await send({"type": "http.response.body", "body": content})


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _gone(receive: Receive, ended: "asyncio.Future[Answer]") -> bool:
    """Wait for the answer; whether the client went away before it."""
    leaving = asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait((ended, leaving), return_when=asyncio.FIRST_COMPLETED)
        return not ended.done()
    finally:
        leaving.cancel()


class Holding:
    """What one request has in hand; see ``Intake.hold``."""

    def __init__(self, intake: Intake) -> None:
        self._intake = intake
        self._held = 0

    def add(self, count: int) -> None:
        """So many bytes more."""
        self._intake.hold(count)
        self._held += count

    def release(self) -> None:
        """Nothing is in hand any more."""
        self._intake.release(self._held)
        self._held = 0


async def read_body(
    service: InferenceService, headers: dict[bytes, bytes], receive: Receive, holding: Holding
) -> bytes | None:
    """The whole body; None when the client went away.

    Raises:
        UnauthorizedError: see ``InferenceService.admit``; nothing of it is read.
        BodyTooLargeError: it is over the limit; the rest of it is left unread.
        OverloadedError: too much is in hand.
    """
    service.admit(headers)
    message = await receive()
    if message["type"] == "http.disconnect":
        return None
    body: bytes = message.get("body", b"")
    if not message.get("more_body", False):
        if len(body) > service.max_body_bytes:
            raise service.too_large()
        holding.add(len(body))
        return body
    holding.add(len(body))
    chunks, size = [body], len(body)
    while message.get("more_body", False):
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        chunk = message.get("body", b"")
        size += len(chunk)
        if size > service.max_body_bytes:
            raise service.too_large()
        holding.add(len(chunk))
        chunks.append(chunk)
    return b"".join(chunks)


class Responder(Response):
    """The same as a response of Starlette, for the routes that OpenAPI describes."""

    def __init__(self, service: InferenceService, target: Target) -> None:
        super().__init__()
        self._service = service
        self._target = target

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer the request."""
        await answer(self._service, self._target, scope, receive, send)
