"""One inference request in the service, from its arrival to its response."""

import asyncio
import itertools
import logging
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from app.engine.codec import HeaderList, Headers
from app.engine.codec.compression import accepted, compress
from app.engine.codec.content import Content
from app.engine.codec.model_codec import Encode
from app.engine.codec.plain import JSON_HEADER
from app.engine.request import Timings
from app.engine.results import InferenceResult
from app.errors import AppError, InternalError, OverloadedError, error_body, error_headers, status_of
from app.repository.served_model import Serving
from app.telemetry.logs import about
from app.telemetry.statistics import PLAIN
from app.telemetry.tracing import RequestTrace, Tracing

if TYPE_CHECKING:
    from opentelemetry.context import Context

log = logging.getLogger(__name__)

Respond = Callable[[int, HeaderList, Content], None]
"""Sends the response: status, headers, body."""

CANCELLED = "Cancelled"
"""Failure reason (metrics label) of an exception that is not an ``AppError``."""
_REQUEST_ID = re.compile(rb"[\x21-\x7e]{1,128}\Z")


class RequestIds:
    """Makes ids for requests without one: unique across workers and restarts, and cheap."""

    def __init__(self) -> None:
        self._prefix = os.urandom(6).hex().encode() + b"-"
        self._counter = itertools.count(1)

    def of(self, headers: Headers) -> bytes:
        """The client's id if it is valid, else a new one."""
        given = headers.get(b"x-request-id")
        if given is not None and _REQUEST_ID.match(given):
            return given
        return self._prefix + b"%08x" % next(self._counter)


@dataclass(frozen=True, slots=True)
class CallContext:
    """Shared context of all inference calls of a service.

    Attributes:
        compression_min_bytes: Shorter responses are not compressed.
        tracing: Makes the spans; None without tracing.
        request_ids: Makes ids for requests without one.
        unrouted: Number of requests that matched no model, by protocol and reason.
    """

    compression_min_bytes: int
    tracing: Tracing | None = None
    request_ids: RequestIds = field(default_factory=RequestIds)
    unrouted: Counter[tuple[str, str]] = field(default_factory=Counter)


class InferenceCall:
    """One inference request and its response; the engine completes it, see ``Completion``.

    It sends one response, by ``completed``, ``failed``, ``fail`` or ``end_with``, or none after ``cancel``.

    Args:
        context: Context shared by all calls.
        headers: Headers of the request.
        respond: Sends the response.
        protocol: Protocol of the request, see ``app.telemetry.statistics``.

    Attributes:
        serving: The model, once it is found.
        rows: Rows of the request, once it is decoded.
        timings: Timings of the request.
    """

    __slots__ = (
        "_accept_encoding", "_context", "_decoding", "_encode", "_pending", "_protocol", "_respond", "_trace_parent",
        "request_id", "rows", "serving", "timings",
    )  # fmt: skip

    def __init__(self, context: CallContext, headers: Headers, respond: Respond, protocol: str = PLAIN) -> None:
        self.timings = Timings(time.perf_counter_ns())
        self.request_id = context.request_ids.of(headers)
        self.serving: Serving | None = None
        self._encode: Encode = _undecoded
        self.rows: int | None = None
        self._context = context
        self._respond = respond
        self._protocol = protocol
        self._accept_encoding = headers.get(b"accept-encoding")
        self._trace_parent: Context | None = None if context.tracing is None else context.tracing.parent(headers)
        self._pending = False  # whether the engine has the request
        self._decoding: asyncio.Task[None] | None = None  # in another process

    @property
    def model(self) -> Serving:
        """The model of the request."""
        if self.serving is None:
            raise RuntimeError("the model of this request is not set yet")
        return self.serving

    def decode_aside(self, decoding: Coroutine[Any, Any, None]) -> None:
        """Mark the request as decoding in another process; the engine gets it afterwards."""
        self._decoding = asyncio.ensure_future(decoding)
        self._decoding.add_done_callback(self._decoded_aside)

    def _decoded_aside(self, _: "asyncio.Task[None]") -> None:
        self._decoding = None

    def decoded(self, rows: int, encode: Encode) -> None:
        """Mark the request as decoded and submitted to the engine."""
        self.rows = rows
        self._encode = encode
        self._pending = True
        self.timings.decoded_ns = time.perf_counter_ns()

    def completed(self, result: InferenceResult) -> None:
        """Respond with the result of the model, and count it."""
        encode_ns = time.perf_counter_ns()
        self._pending = False
        try:
            headers, body = self._encode(result)
            if self._accept_encoding is not None and len(body) >= self._context.compression_min_bytes:
                body = _compressed(body, self._accept_encoding, headers)
        except Exception as error:  # noqa: BLE001 - the client gets a response to every error
            self.end_with(error)
            return
        headers.append((b"x-request-id", self.request_id))
        ended_ns = time.perf_counter_ns()
        if self._context.tracing is not None:
            headers.append(self._context.tracing.end(self._trace(200, None, encode_ns)))
        self._respond(200, headers, body)
        self._count_success(encode_ns, ended_ns)  # after the response was sent

    def failed(self, error: AppError) -> None:
        """Respond with an error, and count it."""
        reason = type(error).__name__
        self._count_failure(reason)
        headers: HeaderList = [(b"x-request-id", self.request_id)]
        if self._context.tracing is not None:
            headers.append(self._context.tracing.end(self._trace(status_of(error), reason)))
        self._pending = False
        self._refuse(error, headers)

    def _refuse(self, error: AppError, headers: HeaderList) -> None:
        """Send the response for an error, in the form of the transport."""
        headers += [JSON_HEADER, *error_headers(error)]
        self._respond(status_of(error), headers, error_body(str(error)))

    def fail(self, error: AppError) -> None:
        """End the request with an error, at any stage."""
        self._withdraw()
        self.failed(error)

    def cancel(self) -> None:
        """Cancel the request in the engine without a response, because the client has disconnected."""
        if self._withdraw():
            self._count_failure(CANCELLED)

    def end_with(self, error: Exception) -> None:
        """Respond to an exception during decoding or encoding.

        The client gets the message of an ``AppError``; the details of a server defect are only logged.
        """
        decoding = self.rows is None
        if isinstance(error, AppError):
            self.failed(error)
        elif isinstance(error, MemoryError):
            self.failed(OverloadedError(f"not enough memory for this {'request' if decoding else 'response'}"))
        else:
            doing = "decoding a request" if decoding else "encoding a response"
            log.error("%s failed", doing, exc_info=error, extra=about(self.request_id))
            self.failed(InternalError())

    def _withdraw(self) -> bool:
        """Withdraw the request from the engine. Return whether it was there."""
        if self._decoding is not None:
            self._decoding.cancel()
            self._decoding = None
            return True
        if not self._pending or self.serving is None:
            return False
        self._pending = False
        self.serving.batcher.cancel(self)
        return True

    def _count_success(self, encode_ns: int, ended_ns: int) -> None:
        if self.serving is None:
            return
        statistics, timings, rows = self.serving.batcher.statistics, self.timings, self.rows or 0
        statistics.rows += rows
        if self._protocol is not PLAIN:
            part = statistics.parts[self._protocol]
            part.success += 1
            part.rows += rows
        began_ns = timings.began_ns
        statistics.succeeded(
            (
                ended_ns - began_ns,
                timings.queue_ns,
                timings.decoded_ns - began_ns + timings.input_ns,
                timings.infer_ns,
                timings.output_ns + ended_ns - encode_ns,
            )
        )

    def _count_failure(self, reason: str) -> None:
        if self.serving is None:
            self._context.unrouted[self._protocol, reason] += 1
            return
        took_ns = time.perf_counter_ns() - self.timings.began_ns
        self.serving.batcher.statistics.failed(reason, took_ns, self._protocol)

    def _trace(self, status: int, error: str | None, encode_ns: int = 0) -> RequestTrace:
        model = None if self.serving is None else self.serving.model
        timings = self.timings
        return RequestTrace(
            protocol=self._protocol,
            request_id=self.request_id.decode("latin-1"),
            parent=self._trace_parent,
            status=status,
            error=error,
            model=None if model is None else model.name,
            version=None if model is None else model.version,
            rows=self.rows,
            began_ns=timings.began_ns,
            decoded_ns=timings.decoded_ns,
            queued_ns=timings.queued_ns,
            queue_ns=timings.queue_ns,
            compute_ns=timings.compute_ns,
            encode_ns=encode_ns,
        )


def _compressed(body: Content, accept_encoding: bytes, headers: HeaderList) -> Content:
    """The body in a content encoding that the client accepts (added to the headers), or unchanged."""
    coding = accepted(accept_encoding)
    if coding is None:
        return body
    headers += [(b"content-encoding", coding), (b"vary", b"accept-encoding")]
    return compress(bytes(body), coding)


def _undecoded(_: InferenceResult) -> tuple[HeaderList, Content]:
    raise RuntimeError("received a result for a request that was not decoded")
