"""Answering inference requests, whatever the transport: a body in, a response by callback."""

import itertools
import logging
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import parse_qsl

import orjson

from app.batcher import Call
from app.codec import plain
from app.errors import (
    AppError,
    BodyTooLargeError,
    InvalidRequestError,
    ModelNotFoundError,
    UnsupportedMediaTypeError,
    status_of,
)
from app.repository import Repository
from app.results import Results
from app.serving import Serving

log = logging.getLogger(__name__)

Headers = dict[bytes, bytes]
HeaderList = list[tuple[bytes, bytes]]
Respond = Callable[[int, HeaderList, bytes], None]

_PLAIN = re.compile(r"/models/([^/]+)(?:/versions/([^/]+))?/predict\Z")
_JSON = (b"content-type", b"application/json")
_REQUEST_ID = re.compile(rb"[\x21-\x7e]{1,128}\Z")
# Curl's -d says that its body is a form; nobody sends tensors as a form.
_JSON_TYPES = (b"application/json", b"", b"text/json", b"text/plain", b"application/x-www-form-urlencoded")


@dataclass(frozen=True, slots=True)
class Target:
    """What a path asks for; the name is None for the default model."""

    name: str | None
    version: str | None


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
    """Finds the model, decodes, submits, encodes, and counts."""

    def __init__(self, repository: Repository, default_model: str | None, max_body_bytes: int) -> None:
        self.repository = repository
        self.default_model = default_model
        self.max_body_bytes = max_body_bytes
        self.request_ids = RequestIds()
        self._targets: dict[str, Target | None] = {"/predict": Target(None, None)}
        self._writers: dict[int, plain.PlainWriter] = {}

    def target(self, path: str) -> Target | None:
        """What an inference path asks for; None for any other path."""
        try:
            return self._targets[path]
        except KeyError:
            match = _PLAIN.match(path)
            target = Target(*match.groups()) if match else None
            if len(self._targets) < 1024:
                self._targets[path] = target
            return target

    def serving(self, target: Target) -> Serving:
        """The loaded model for a target, see ``Repository.get``."""
        name = target.name
        if name is None:
            name = choose_default(self.repository.names(), self.default_model)
        return self.repository.get(name, target.version)

    def check_length(self, headers: Headers) -> None:
        """Refuse a body by its announced length, before a byte of it is read.

        Raises:
            BodyTooLargeError: it is over the limit.
        """
        length = headers.get(b"content-length")
        if length is not None and int(length) > self.max_body_bytes:
            raise too_large(self.max_body_bytes)

    def start(self, target: Target, headers: Headers, query: bytes, body: bytes, respond: Respond) -> Call | None:
        """Begin to answer; ``respond`` is called once, now or later, in the event loop.

        Returns:
            The call that waits for its run, to be cancelled should the client go; None when all is done.
        """
        exchange = Exchange(self, headers, respond)
        try:
            serving = self.serving(target)
            exchange.serving = serving
            content_type = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
            if content_type not in _JSON_TYPES and not content_type.endswith(b"+json"):
                shown = content_type.decode("latin-1")[:60]
                raise UnsupportedMediaTypeError(f"content-type {shown!r} is not supported; send application/json")
            request = plain.decode(serving.model, body)
            exchange.top_k = request.top_k
            if query:
                exchange.top_k = _query_top_k(serving, query, request.top_k)
        except AppError as error:
            exchange.fail(error)
            return None
        except Exception:  # a defect of ours: the caller learns no more than that
            log.exception("decoding a request failed")
            exchange.respond_error(500, "internal error")
            return None
        prepared = request.prepared
        call = Call(prepared.feeds, prepared.output_names, prepared.rows, prepared.key, exchange.done)
        exchange.decoded_ns = time.perf_counter_ns()
        serving.batcher.submit(call)
        return call

    def writer(self, serving: Serving) -> plain.PlainWriter:
        """The writer of a model's plain answers."""
        writer = self._writers.get(id(serving))
        if writer is None:
            # A model is known by its identity, which may be used again after a reload.
            alive = {id(item) for item in self.repository.servings()}
            self._writers = {key: value for key, value in self._writers.items() if key in alive}
            writer = self._writers[id(serving)] = plain.PlainWriter(serving.model)
        return writer


class Exchange:
    """One request and its answer."""

    __slots__ = ("began_ns", "decoded_ns", "request_id", "respond", "service", "serving", "top_k")

    def __init__(self, service: InferenceService, headers: Headers, respond: Respond) -> None:
        self.began_ns = time.perf_counter_ns()
        self.decoded_ns = 0
        self.service = service
        self.respond = respond
        self.request_id = service.request_ids.of(headers)
        self.serving: Serving | None = None
        self.top_k: int | None = None

    def done(self, call: Call, results: Results | None, error: AppError | None) -> None:
        """The model ran, or could not."""
        if results is None:
            self.fail(error or InvalidRequestError("no result"))
            return
        serving = self.serving
        assert serving is not None  # noqa: S101 - set before the call was made
        encode_ns = time.perf_counter_ns()
        try:
            body = self.service.writer(serving).encode(results, call.start, call.stop, self.top_k)
        except AppError as failure:
            self.fail(failure)
            return
        except Exception:  # as above
            log.exception("encoding an answer failed")
            self.respond_error(500, "internal error")
            return
        ended_ns = time.perf_counter_ns()
        statistics = serving.batcher.statistics
        statistics.rows += call.rows
        statistics.success.add(ended_ns - self.began_ns)
        statistics.queue.add(call.queue_ns)
        statistics.compute_input.add(self.decoded_ns - self.began_ns + call.input_ns)
        statistics.compute_infer.add(call.infer_ns)
        statistics.compute_output.add(ended_ns - encode_ns)
        self.respond(200, [_JSON, (b"x-request-id", self.request_id)], body)

    def fail(self, error: AppError) -> None:
        """Answer with an error and count it."""
        if self.serving is not None:
            elapsed = time.perf_counter_ns() - self.began_ns
            self.serving.batcher.statistics.failed(type(error).__name__, elapsed)
        self.respond_error(status_of(error), str(error))

    def respond_error(self, status: int, message: str) -> None:
        """Answer with an error."""
        self.respond(status, [_JSON, (b"x-request-id", self.request_id)], error_body(message))


def too_large(limit: int) -> BodyTooLargeError:
    """The error for a body over the limit."""
    return BodyTooLargeError(f"the body is larger than max_body_bytes ({limit})")


def _query_top_k(serving: Serving, query: bytes, given: int | None) -> int | None:
    fields = dict(parse_qsl(query.decode("latin-1"), keep_blank_values=True))
    unknown = [name for name in fields if name != "top_k"]
    if unknown:
        raise InvalidRequestError(f"unknown query parameter {unknown[0][:40]!r}; known: top_k")
    if "top_k" not in fields:
        return given
    value = fields["top_k"]
    return plain.check_top_k(serving.model, int(value) if value.isdecimal() else value)
