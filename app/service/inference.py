"""Inference service: finds the model, decodes, admits, queues and runs a request, and answers it."""

import asyncio
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from app.config.limits import Limits
from app.config.settings import Settings
from app.engine.codec import Api, Body, HeaderList, Headers
from app.engine.codec.compression import decompress_short
from app.engine.codec.content import Content
from app.engine.codec.described import DescribedModel, ModelDescription
from app.engine.codec.model_codec import MOST_INLINE_BYTES, AnswerForm, Encode
from app.engine.request import InferenceRequest
from app.errors import AppError, BodyTooLargeError, ModelNotFoundError, ModelUnavailableError
from app.repository.repository import LOADING, Repository
from app.repository.served_model import Serving
from app.runtime.cuda.buffers import Bodies
from app.service.access import Access
from app.service.admission import AdmissionControl
from app.service.decode_worker import HttpJob, Job
from app.service.decoder import Decoder
from app.service.inference_call import CallContext, InferenceCall, RequestIds, Respond
from app.telemetry.statistics import OIP, PLAIN
from app.telemetry.tracing import Tracing

Answer = tuple[int, HeaderList, Content]
"""Status, headers, body."""

Decoded = tuple[InferenceRequest, Encode]
"""A request, and what encodes its result."""

Read = Callable[[DescribedModel], tuple[InferenceRequest, AnswerForm] | None]
"""Reads a request for a model; None where that may hold up the process, so that another one should do it."""

MakeJob = Callable[[ModelDescription, int, int], Job]
"""Makes what another process is given to read a body for a model: with the limits of its bytes and its rows."""

_PLAIN = re.compile(r"/models/([^/]+)(?:/versions/([^/]+))?/predict\Z")
_OIP = re.compile(r"/v2/models/([^/]+)(?:/versions/([^/]+))?/infer\Z")
_V1 = re.compile(r"/v1/models/([^/:]+)(?:/versions/([^/:]+))?:predict\Z")
_MAX_TARGETS = 1024
_MAX_PATH = 512  # a longer path is parsed for each request


@dataclass(frozen=True, slots=True)
class Target:
    """Model, version and protocol of an inference path; the name is None for the default model."""

    name: str | None
    version: str | None
    api: Api = "plain"
    path: str = "/predict"

    @property
    def protocol(self) -> str:
        """Protocol label of its counters."""
        return OIP if self.api == "oip" else PLAIN


def choose_default(repository: Repository, default: str | None) -> str:
    """The model of ``POST /predict``: of the settings, or whose own settings say so, served or not, or the only one.

    Raises:
        ModelNotFoundError: none of these names one model.
    """
    if default is not None:
        return default
    claimed = repository.defaults
    if len(claimed) == 1:
        return claimed[0]
    if claimed:
        raise ModelNotFoundError(
            f"several models have 'default = true' in their panther.toml ({', '.join(claimed)}), which one may have; "
            "use /models/NAME/predict or set PANTHER_DEFAULT_MODEL"
        )
    names = repository.names
    if len(names) == 1:
        return names[0]
    if not names:
        raise ModelNotFoundError("no model is loaded")
    raise ModelNotFoundError(
        f"several models are loaded ({', '.join(names)}); use /models/NAME/predict or set PANTHER_DEFAULT_MODEL"
    )


@dataclass(frozen=True, slots=True)
class ServiceOptions:
    """Options of the inference service; see the settings of the same names.

    Attributes:
        default_model: the model of ``POST /predict``, or None.
        max_body_bytes: limit of a body, as sent and when decompressed.
        compression_min_bytes: answers shorter than this are never compressed.
        max_queue_bytes: limit of the bodies of all in-flight requests.
        limits: of connections and of rows.
        access_log: whether each request is logged.
        cross_origin: whether pages of other origins may send requests.
    """

    default_model: str | None
    max_body_bytes: int
    compression_min_bytes: int
    max_queue_bytes: int
    limits: Limits
    access_log: bool
    cross_origin: bool

    @classmethod
    def of(cls, settings: Settings) -> "ServiceOptions":
        """Options from the settings."""
        return cls(
            settings.default_model,
            settings.max_body_bytes,
            settings.compression_min_bytes,
            settings.max_queue_bytes,
            Limits.of(settings),
            settings.access_log,
            bool(settings.origins()),
        )


class InferenceService:
    """Answers inference requests, whatever the transport.

    Args:
        repository: where the models are.
        options: see ``ServiceOptions``.
        access: checks API keys; None where none are needed.
        bodies: pinned memory for long bodies of binary tensors; None where there is none.
        tracing: makes the spans of requests; None without tracing.
    """

    def __init__(
        self,
        repository: Repository,
        options: ServiceOptions,
        *,
        access: Access | None = None,
        bodies: Bodies | None = None,
        tracing: Tracing | None = None,
    ) -> None:
        self.repository = repository
        self.options = options
        self.limits = options.limits
        self.max_body_bytes = options.max_body_bytes
        self.access_log = options.access_log
        self.cross_origin = options.cross_origin
        self.access = access
        self.bodies = bodies
        self.admission = AdmissionControl(options.max_queue_bytes)
        self.context = CallContext(options.compression_min_bytes, tracing)
        self._decoder = Decoder()
        self._targets: dict[str, Target | None] = {"/predict": Target(None, None)}

    @property
    def tracing(self) -> Tracing | None:
        """Makes the spans of requests; None without tracing."""
        return self.context.tracing

    @property
    def request_ids(self) -> RequestIds:
        """Ids for requests that bring none."""
        return self.context.request_ids

    @property
    def unrouted(self) -> Counter[tuple[str, str]]:
        """Requests that met no model, by protocol and reason."""
        return self.context.unrouted

    def target(self, path: str) -> Target | None:
        """Parse an inference path; None for any other path."""
        try:
            return self._targets[path]
        except KeyError:
            target = None
            if match := _PLAIN.match(path):
                target = Target(match[1], match[2], path=path)
            elif match := _OIP.match(path):
                target = Target(match[1], match[2], "oip", path)
            elif match := _V1.match(path):
                target = Target(match[1], match[2], "v1", path)
            if len(self._targets) < _MAX_TARGETS and len(path) <= _MAX_PATH:
                self._targets[path] = target
            return target

    def serving(self, target: Target) -> Serving:
        """The loaded model for a target, see ``Repository.get``; while models are loaded, unavailable in doubt."""
        name = target.name or self.options.default_model
        if name is None:
            if self.repository.starting:
                # Which one is the only one is not known yet.
                raise ModelUnavailableError(LOADING)
            name = choose_default(self.repository, None)
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

    def too_large(self) -> BodyTooLargeError:
        """The error for a body over the limit."""
        return BodyTooLargeError(f"the body is larger than max_body_bytes ({self.max_body_bytes})")

    def start(self, target: Target, headers: Headers, query: bytes, body: Body, respond: Respond) -> InferenceCall:
        """Start an inference call; ``respond`` is called once, now or later, on the event loop.

        This is the fast path, without a task or an await, for all but the largest bodies. What follows:
        ``Batcher.submit`` queues the request and runs it in a batch, then calls ``InferenceCall.completed``, which
        encodes the result and responds.

        Returns:
            The call, to be cancelled when the client leaves.
        """
        call = InferenceCall(self.context, headers, respond, target.protocol)
        try:
            found = self._decode(call, target, headers, query, body)
            if found is None:
                call.decode_aside(self._start_aside(call, target, self._http_job(target, headers, query), body))
                return call
            request, encode = found
        except Exception as error:  # noqa: BLE001 - whatever it is, the client gets an answer
            call.end_with(error)
            return call
        call.decoded(request.rows, encode)
        call.model.batcher.submit(request, call, call.timings)
        return call

    def start_read(self, call: InferenceCall, target: Target, read: Read, make_job: MakeJob, body: Body) -> None:
        """Start an inference call of another transport than HTTP; the rest is as with ``start``.

        Args:
            call: made with ``context``; answers the request.
            target: the model that is asked for.
            read: reads the request in this process, where that takes no longer than it may.
            make_job: what another process is given otherwise.
            body: of the request.
        """
        try:
            serving = self._find(call, target)
            found = read(serving.model)
            if found is None:
                call.decode_aside(self._start_aside(call, target, make_job, body))
                return
            request, form = found
            request, encode = self._admitted(request), serving.codec.encoder(request, form)
        except Exception as error:  # noqa: BLE001 - whatever it is, the client gets an answer
            call.end_with(error)
            return
        call.decoded(request.rows, encode)
        serving.batcher.submit(request, call, call.timings)

    async def infer(self, target: Target, headers: Headers, query: bytes, body: Body, keep: object = None) -> Answer:
        """Answer a request; cancelling the task cancels the request.

        Args:
            target, headers, query, body: of the request.
            keep: kept until no run reads the body any more.
        """
        answers: list[Answer] = []
        protocol = target.protocol
        call = InferenceCall(self.context, headers, lambda *answer: answers.append(answer), protocol)
        try:
            found = self._decode(call, target, headers, query, body)
            request, encode = found or await self._decode_aside(
                call, target, self._http_job(target, headers, query), body
            )
            del body
            call.decoded(request.rows, encode)
            result = await call.model.batcher.run(request, call.timings, keep=keep)
        except asyncio.CancelledError:
            call.cancel()
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, the client gets an answer
            call.end_with(error)
        else:
            call.completed(result)
        return answers[0]

    async def close(self) -> None:
        """End the decoding process, and send the last spans."""
        await asyncio.to_thread(self._decoder.close)
        if self.tracing is not None:
            await asyncio.to_thread(self.tracing.close)

    def refuse(self, target: Target, headers: Headers, respond: Respond, error: AppError) -> None:
        """Answer a request with an error before its body is read, and count it."""
        InferenceCall(self.context, headers, respond, target.protocol).failed(error)

    def _find(self, call: InferenceCall, target: Target) -> Serving:
        """The model of a request that its queue has room for.

        Raises:
            ModelNotFoundError, ModelUnavailableError: see ``serving``.
            OverloadedError: before any work is done for the request.
        """
        serving = call.serving = self.serving(target)
        refusal = serving.batcher.why_full()
        if refusal is not None:
            try:
                raise refusal
            finally:
                del refusal  # its traceback refers to this frame, and the caller's to the body
        return serving

    def _decode(
        self, call: InferenceCall, target: Target, headers: Headers, query: bytes, body: Body
    ) -> Decoded | None:
        """Find the model and decode the request; None where another process has to, see ``_decode_aside``.

        Raises:
            AppError: says what is wrong, or why the request is not admitted.
        """
        codec = self._find(call, target).codec
        if codec.is_heavy(headers, body, target.api):
            return None
        encoding = headers.get(b"content-encoding")
        if encoding is not None:
            short = decompress_short(body, encoding, MOST_INLINE_BYTES, self.max_body_bytes)
            if short is None:
                return None
            body = short
        request, form = codec.read(headers, query, body, target.api)
        return self._admitted(request), codec.encoder(request, form)

    def _admitted(self, request: InferenceRequest) -> InferenceRequest:
        if request.rows > self.limits.max_request_rows:
            raise self.limits.too_many_rows(request.rows)
        return request

    def _http_job(self, target: Target, headers: Headers, query: bytes) -> MakeJob:
        return partial(HttpJob, headers=headers, query=query, api=target.api)

    async def _decode_aside(self, call: InferenceCall, target: Target, make_job: MakeJob, body: Body) -> Decoded:
        """Have another process decode a large request; should the model be replaced meanwhile, for the new one."""
        while True:
            serving = call.serving = self.serving(target)
            description = ModelDescription(serving.model)
            job = make_job(description, self.max_body_bytes, self.limits.max_request_rows)
            request, form = await self._decoder.read(job, body)
            if not serving.batcher.closed:
                return self._admitted(request), serving.codec.encoder(request, form)

    async def _start_aside(self, call: InferenceCall, target: Target, make_job: MakeJob, body: Body) -> None:
        """The rest of ``start`` for a large request."""
        try:
            request, encode = await self._decode_aside(call, target, make_job, body)
        except Exception as error:  # noqa: BLE001 - whatever it is, the client gets an answer
            call.end_with(error)
            return
        del body
        call.decoded(request.rows, encode)
        call.model.batcher.submit(request, call, call.timings)
