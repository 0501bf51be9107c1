"""Answering inference requests, whatever the transport: a body in, a response by callback."""

import itertools
import logging
import os
import re
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import orjson

from app.access import Access
from app.calls import Call
from app.codec import Body, HeaderList, Headers
from app.codec.compression import accepted, compress, decompress
from app.codec.plain import JSON_HEADER
from app.cuda_buffers import Bodies
from app.errors import (
    AppError,
    BodyTooLargeError,
    InvalidRequestError,
    ModelNotFoundError,
    ModelUnavailableError,
    OverloadedError,
    error_headers,
    status_of,
)
from app.intake import Intake
from app.limits import Limits
from app.logs import about
from app.repository import LOADING, Repository
from app.results import Results
from app.serving import Serving
from app.statistics import OIP, PLAIN
from app.tracing import Tracing

log = logging.getLogger(__name__)

Respond = Callable[[int, HeaderList, bytes], None]

_PLAIN = re.compile(r"/models/([^/]+)(?:/versions/([^/]+))?/predict\Z")
_OIP = re.compile(r"/v2/models/([^/]+)(?:/versions/([^/]+))?/infer\Z")
_REQUEST_ID = re.compile(rb"[\x21-\x7e]{1,128}\Z")
_MAX_TARGETS = 1024
_MAX_PATH = 512  # a longer path is understood anew each time
_MAX_HEADS = 1024
HEAD_BYTES = 2048
"""A head longer than this is parsed each time."""
CANCELLED, INTERNAL_ERROR = "Cancelled", "InternalError"
"""Reasons of failures that are no ``AppError``."""


@dataclass(frozen=True, slots=True)
class Target:
    """What a path asks for; the name is None for the default model."""

    name: str | None
    version: str | None
    oip: bool = False
    path: str = "/predict"


@dataclass(frozen=True, slots=True)
class Head:
    """What the head of an inference request says."""

    target: Target
    headers: Headers
    query: bytes
    length: int


class RequestIds:
    """Ids for requests that bring none: unique over workers and restarts, and cheap."""

    def __init__(self) -> None:
        self._prefix = os.urandom(6).hex().encode() + b"-"
        self._counter = itertools.count(1)

    def of(self, headers: Headers) -> bytes:
        """The caller's own id where it is fit to be echoed, else a new one."""
        given = headers.get(b"x-request-id")
        if given is not None and _REQUEST_ID.match(given):
            return given
        return self._prefix + b"%08x" % next(self._counter)


def error_body(message: str) -> bytes:
    """``{"error": …}``, the one form of every error."""
    return orjson.dumps({"error": message})


def choose_default(names: list[str], default: str | None) -> str:
    """The model of ``POST /predict``.

    Raises:
        ModelNotFoundError: no default is set and there isn't exactly one model.
    """
    if default is not None:
        return default
    if len(names) == 1:
        return names[0]
    if not names:
        raise ModelNotFoundError("no model is loaded")
    raise ModelNotFoundError(
        f"several models are loaded ({', '.join(names)}); use /models/NAME/predict or set PANTHER_DEFAULT_MODEL"
    )


class InferenceService:
    """Finds the model, decodes, submits, encodes, and counts.

    Args:
        repository: where the models are.
        default_model: the model of ``POST /predict``, or None.
        max_body_bytes: limit of a body, as sent and when decompressed.
        compression_min_bytes: answers shorter than this are never compressed.
        max_queue_bytes: of the bodies in hand, from their arrival to the answer.
    """

    def __init__(
        self,
        repository: Repository,
        default_model: str | None,
        max_body_bytes: int,
        compression_min_bytes: int,
        max_queue_bytes: int = 512 * 1024 * 1024,
    ) -> None:
        self.repository = repository
        self.default_model = default_model
        self.max_body_bytes = max_body_bytes
        self.compression_min_bytes = compression_min_bytes
        self.intake = Intake(max_queue_bytes)
        self.bodies: Bodies | None = None  # what long bodies of binary tensors are received into
        self.request_ids = RequestIds()
        self.tracing: Tracing | None = None
        self.access: Access | None = None
        self.limits = Limits()
        self.access_log = False
        self.cross_origin = False  # whether pages of other origins may ask
        self.unrouted: Counter[tuple[str, str]] = Counter()  # protocol and reason, of requests that met no model
        self._targets: dict[str, Target | None] = {"/predict": Target(None, None)}
        self.heads: dict[bytes, Head] = {}  # as they were sent

    def target(self, path: str) -> Target | None:
        """What an inference path asks for; None for any other path."""
        try:
            return self._targets[path]
        except KeyError:
            target = None
            if match := _PLAIN.match(path):
                target = Target(match[1], match[2], path=path)
            elif match := _OIP.match(path):
                target = Target(match[1], match[2], oip=True, path=path)
            if len(self._targets) < _MAX_TARGETS and len(path) <= _MAX_PATH:
                self._targets[path] = target
            return target

    def serving(self, target: Target) -> Serving:
        """The loaded model for a target, see ``Repository.get``; while models are loaded, unavailable in doubt."""
        name = target.name or self.default_model
        if name is None:
            if self.repository.starting:
                # Which one is the only one is not known yet.
                raise ModelUnavailableError(LOADING)
            name = choose_default(self.repository.names(), None)
        return self.repository.get(name, target.version)

    def admit(self, headers: Headers) -> None:
        """Refuse an inference request by its head: for want of a key, or for a body that is too long.

        Raises:
            UnauthorizedError: its key is missing or not known.
            BodyTooLargeError: see ``check_length``.
        """
        if self.access is not None:
            self.access.check_predict(headers)
        self.check_length(headers)

    def check_length(self, headers: Headers) -> None:
        """Refuse a body by its announced length, before a byte of it is read.

        Raises:
            BodyTooLargeError: it is over the limit.
        """
        length = headers.get(b"content-length")
        if length is not None and int(length) > self.max_body_bytes:
            raise self.too_large()

    def remember(self, text: bytes, target: Target, headers: Headers, query: bytes) -> None:
        """Keep what the parser found in a head that was let in: the next request with the same one is let in too."""
        length = headers.get(b"content-length")
        if length is None or b"transfer-encoding" in headers:
            return
        if len(self.heads) >= _MAX_HEADS:
            self.heads.clear()
        self.heads[text] = Head(target, headers, query, int(length))

    def too_large(self) -> BodyTooLargeError:
        """The error for a body over the limit."""
        return BodyTooLargeError(f"the body is larger than max_body_bytes ({self.max_body_bytes})")

    def start(self, target: Target, headers: Headers, query: bytes, body: Body, respond: Respond) -> "Exchange":
        """Begin to answer; ``respond`` is called once, now or later, in the event loop.

        Returns:
            The exchange, to be cancelled should the client go away.
        """
        exchange = Exchange(self, headers, respond, oip=target.oip)
        try:
            serving = exchange.serving = self.serving(target)
            batcher = serving.batcher
            full = batcher.full() if batcher.running else None
            if full is not None:
                raise full  # before any work is done for it
            encoding = headers.get(b"content-encoding")
            if encoding is not None:
                body = decompress(body, encoding, self.max_body_bytes)
            codec = serving.codec
            call = codec.oip(headers, body) if target.oip else codec.plain(headers, query, body)
            if call.rows > self.limits.max_request_rows:
                raise self.limits.too_many_rows(call.rows)
        except AppError as error:
            exchange.fail(error)
            return exchange
        except MemoryError:
            exchange.fail(OverloadedError("there is no memory for this request now"))
            return exchange
        except Exception:  # a defect of ours: the caller learns no more than that
            log.exception("decoding a request failed", extra=about(exchange.request_id))
            exchange.break_down()
            return exchange
        call.done = exchange.done
        if call.timeout_us:
            call.deadline_ns = exchange.began_ns + 1000 * call.timeout_us
        exchange.call = call
        exchange.decoded_ns = time.perf_counter_ns()
        batcher.submit(call)
        return exchange


class Exchange:
    """One request and its answer."""

    __slots__ = (
        "accept_encoding", "began_ns", "call", "decoded_ns", "oip", "request_id", "respond", "service", "serving",
        "trace_parent",
    )  # fmt: skip

    def __init__(self, service: InferenceService, headers: Headers, respond: Respond, *, oip: bool = False) -> None:
        self.began_ns = time.perf_counter_ns()
        self.oip = oip
        self.trace_parent = None if service.tracing is None else service.tracing.parent(headers)
        self.decoded_ns = 0
        self.service = service
        self.respond = respond
        self.request_id = service.request_ids.of(headers)
        self.accept_encoding = headers.get(b"accept-encoding")
        self.serving: Serving | None = None
        self.call: Call | None = None

    def cancel(self) -> None:
        """The client went away: drop the call if it has not run yet, and answer nobody."""
        if self.call is not None and self.serving is not None and not self.call.cancelled:
            self.serving.batcher.cancel(self.call)
            self.serving.batcher.statistics.failed(CANCELLED, time.perf_counter_ns() - self.began_ns, oip=self.oip)
            self.call = None

    def done(self, call: Call, results: Results | None, error: AppError | None) -> None:
        """The model ran, or could not."""
        serving, reply = self.serving, call.reply
        if results is None or serving is None or reply is None:
            self.fail(error or InvalidRequestError("no result"))
            return
        encode_ns = time.perf_counter_ns()
        try:
            headers, body = reply(results, call.start, call.stop)
            if self.accept_encoding is not None and len(body) >= self.service.compression_min_bytes:
                coding = accepted(self.accept_encoding)
                if coding is not None:
                    body = compress(body, coding)
                    headers += [(b"content-encoding", coding), (b"vary", b"accept-encoding")]
        except AppError as failure:
            self.fail(failure)
            return
        except MemoryError:
            self.fail(OverloadedError("there is no memory for this answer now"))
            return
        except Exception:  # as above
            log.exception("encoding an answer failed", extra=about(self.request_id))
            self.break_down()
            return
        headers.append((b"x-request-id", self.request_id))
        ended_ns = time.perf_counter_ns()
        if self.service.tracing is not None:
            headers.append(self.service.tracing.end(self, 200, None, encode_ns))
        self._answer(200, headers, body)
        # Counted while the client reads.
        statistics = serving.batcher.statistics
        statistics.rows += call.rows
        if self.oip:
            statistics.oip_success += 1
            statistics.oip_rows += call.rows
        statistics.success.add(ended_ns - self.began_ns)
        statistics.queue.add(call.queue_ns)
        statistics.compute_input.add(self.decoded_ns - self.began_ns + call.input_ns)
        statistics.compute_infer.add(call.infer_ns)
        statistics.compute_output.add(call.output_ns + ended_ns - encode_ns)

    def fail(self, error: AppError) -> None:
        """Answer with an error and count it."""
        self._count(type(error).__name__)
        headers = [JSON_HEADER, (b"x-request-id", self.request_id)]
        headers += error_headers(error)
        if self.service.tracing is not None:
            headers.append(self.service.tracing.end(self, status_of(error), type(error).__name__))
        self._answer(status_of(error), headers, error_body(str(error)))

    def break_down(self) -> None:
        """Answer for a defect of the server, which is in the log, and count it."""
        self._count(INTERNAL_ERROR)
        headers = [JSON_HEADER, (b"x-request-id", self.request_id)]
        if self.service.tracing is not None:
            headers.append(self.service.tracing.end(self, 500, INTERNAL_ERROR))
        self._answer(500, headers, error_body("internal error"))

    def _answer(self, status: int, headers: HeaderList, body: bytes) -> None:
        # The call refers to this exchange: left as it is, each request would wait for the collector, which stops all
        # others for 10 ms when it comes.
        self.call = None
        self.respond(status, headers, body)

    def _count(self, reason: str) -> None:
        if self.serving is None:
            self.service.unrouted[OIP if self.oip else PLAIN, reason] += 1
            return
        self.serving.batcher.statistics.failed(reason, time.perf_counter_ns() - self.began_ns, oip=self.oip)
