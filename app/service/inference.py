"""Inference service: finds the model, admits, decodes, queues and runs a request, and sends the response."""

import asyncio
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from app.config.limits import Limits
from app.config.settings import Settings
from app.engine.codec import Api, Body, HeaderList, Headers
from app.engine.codec.compression import decompress_short
from app.engine.codec.content import Content
from app.engine.codec.described import DescribedModel, ModelDescription
from app.engine.codec.model_codec import MOST_INLINE_BYTES, Encode, ModelCodec, ResponseForm
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

HttpResponse = tuple[int, HeaderList, Content]
"""Status, headers, body."""

Decoded = tuple[InferenceRequest, Encode]
"""A request, and the encoder of its result."""

Read = Callable[[DescribedModel], tuple[InferenceRequest, ResponseForm] | None]
"""Decodes a request for a model; None if that may block the process for long, so another one must do it."""

MakeJob = Callable[[ModelDescription, int, int], Job]
"""Makes the job for decoding in another process, with the limits of bytes and rows."""

_PLAIN = re.compile(r"/models/([^/]+)(?:/versions/([^/]+))?/predict\Z")
_OIP = re.compile(r"/v2/models/([^/]+)(?:/versions/([^/]+))?/infer\Z")
_V1 = re.compile(r"/v1/models/([^/:]+)(?:/versions/([^/:]+))?:predict\Z")
_MAX_TARGETS = 1024
_MAX_PATH = 512  # longer paths are not cached


@dataclass(frozen=True, slots=True)
class Target:
    """Model and version of an inference path, with the format of its requests and the label of their counters.

    Attributes:
        name: Name of the model; None for the default model.
        version: Version of the model; None for the served one.
        api: Format of the request.
        path: The whole path.
        protocol: Protocol label of the counters.
    """

    name: str | None
    version: str | None
    api: Api = "plain"
    path: str = "/predict"
    protocol: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "protocol", OIP if self.api == "oip" else PLAIN)


def choose_default(repository: Repository, default: str | None) -> str:
    """The model of ``POST /predict``: from the settings, or from a model's settings (served or not), or the only one.

    Raises:
        ModelNotFoundError: None of these names one model.
    """
    if default is not None:
        return default
    claimed = repository.defaults
    if len(claimed) == 1:
        return claimed[0]
    if claimed:
        raise ModelNotFoundError(
            f"several models have 'default = true' in their panther.toml ({', '.join(claimed)}), but only one may; "
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
        default_model: The model of ``POST /predict``, or None.
        max_body_bytes: Limit of a body, compressed and decompressed.
        compression_min_bytes: Shorter responses are not compressed.
        max_queue_bytes: Byte budget for the bodies of all in-flight requests.
        limits: Limits of connections and rows.
        access_log: Whether to log each request.
        cross_origin: Whether pages of other origins may send requests.
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
    """Serves inference requests, independent of the transport.

    Args:
        repository: The model repository.
        options: See ``ServiceOptions``.
        access: Checks API keys; None without keys.
        bodies: Pinned memory for long bodies of binary tensors, or None.
        tracing: Makes the spans of requests; None without tracing.
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
        """Makes ids for requests without an id."""
        return self.context.request_ids

    @property
    def unrouted(self) -> Counter[tuple[str, str]]:
        """Number of requests that matched no model, by protocol and reason."""
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
        """The loaded model for a target, see ``Repository.get``; unavailable if a loading model may match."""
        name = target.name or self.options.default_model
        if name is None:
            if self.repository.starting:
                # While models load, the only model is unknown.
                raise ModelUnavailableError(LOADING)
            name = choose_default(self.repository, None)
        return self.repository.get(name, target.version)

    def admit(self, headers: Headers) -> None:
        """Refuse an inference request by its headers, because of a missing key or a long body.

        Raises:
            UnauthorizedError: The key is missing or unknown.
            BodyTooLargeError: See ``check_length``.
        """
        if self.access is not None:
            self.access.check_predict(headers)
        self.check_length(headers)

    def check_length(self, headers: Headers) -> None:
        """Refuse a body by its announced length, before reading it.

        Raises:
            BodyTooLargeError: The length exceeds the limit.
        """
        length = headers.get(b"content-length")
        if length is not None and int(length) > self.max_body_bytes:
            raise self.too_large()

    def too_large(self) -> BodyTooLargeError:
        """The error for a body over the limit."""
        return BodyTooLargeError(f"the body is larger than max_body_bytes ({self.max_body_bytes})")

    def start(self, target: Target, headers: Headers, query: bytes, body: Body, respond: Respond) -> InferenceCall:
        """Start an inference call; ``respond`` is called once, now or later, on the event loop.

        This is the fast path, without a task or an await, except for the largest bodies. Next,
        ``Batcher.submit`` (``app.engine.batcher``) queues the request and runs it in a batch, then calls
        ``InferenceCall.completed``, which encodes the result and responds.

        Returns:
            The call, to be cancelled if the client disconnects.
        """
        call = InferenceCall(self.context, headers, respond, target.protocol)
        try:
            serving = self._find(call, target)
            found = self._decode(serving.codec, target, headers, query, body)
            if found is None:
                call.decode_aside(self._start_aside(call, target, self._http_job(target, headers, query), body))
                return call
            request, encode = found
        except Exception as error:  # noqa: BLE001 - the client gets a response to every error
            call.end_with(error)
            return call
        call.decoded(request.rows, encode)
        serving.batcher.submit(request, call, call.timings)
        return call

    def start_read(self, call: InferenceCall, target: Target, read: Read, make_job: MakeJob, body: Body) -> None:
        """Start an inference call of a transport other than HTTP; the rest is the same as in ``start``.

        Args:
            call: Made with ``context``; responds to the request.
            target: The requested model.
            read: Decodes the request in this process, if that is fast enough.
            make_job: Otherwise makes the job for another process.
            body: Body of the request.
        """
        try:
            serving = self._find(call, target)
            found = read(serving.model)
            if found is None:
                call.decode_aside(self._start_aside(call, target, make_job, body))
                return
            request, form = found
            request, encode = self._admitted(request), serving.codec.encoder(request, form)
        except Exception as error:  # noqa: BLE001 - the client gets a response to every error
            call.end_with(error)
            return
        call.decoded(request.rows, encode)
        serving.batcher.submit(request, call, call.timings)

    async def infer(
        self, target: Target, headers: Headers, query: bytes, body: Body, keep: object = None
    ) -> HttpResponse:
        """Serve a request; cancelling the task cancels the request.

        Args:
            target, headers, query, body: Parts of the request.
            keep: Object to keep alive until no run reads the body any more.
        """
        responses: list[HttpResponse] = []
        protocol = target.protocol
        call = InferenceCall(self.context, headers, lambda *response: responses.append(response), protocol)
        try:
            codec = self._find(call, target).codec
            found = self._decode(codec, target, headers, query, body)
            request, encode = found or await self._decode_aside(
                call, target, self._http_job(target, headers, query), body
            )
            del body
            call.decoded(request.rows, encode)
            result = await call.model.batcher.run(request, call.timings, keep=keep)
        except asyncio.CancelledError:
            call.cancel()
            raise
        except Exception as error:  # noqa: BLE001 - the client gets a response to every error
            call.end_with(error)
        else:
            call.completed(result)
        return responses[0]

    async def close(self) -> None:
        """End the decoding process, and send the last spans."""
        await asyncio.to_thread(self._decoder.close)
        if self.tracing is not None:
            await asyncio.to_thread(self.tracing.close)

    def refuse(self, target: Target, headers: Headers, respond: Respond, error: AppError) -> None:
        """Respond with an error before the body is read, and count it."""
        InferenceCall(self.context, headers, respond, target.protocol).failed(error)

    def _find(self, call: InferenceCall, target: Target) -> Serving:
        """The model of a request, if its queue has room.

        Raises:
            ModelNotFoundError, ModelUnavailableError: See ``serving``.
            OverloadedError: The queue is full; raised before any work for the request.
        """
        serving = call.serving = self.serving(target)
        refusal = serving.batcher.why_full()
        if refusal is not None:
            try:
                raise refusal
            finally:
                del refusal  # its traceback refers to this frame, and the caller's to the body
        return serving

    def _decode(self, codec: ModelCodec, target: Target, headers: Headers, query: bytes, body: Body) -> Decoded | None:
        """Decode the request; None if another process must decode it, see ``_decode_aside``.

        Raises:
            AppError: The request is invalid, or is not admitted.
        """
        if len(body) > MOST_INLINE_BYTES and codec.is_heavy(headers, body, target.api):
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
        """Let another process decode a large request; if the model is replaced meanwhile, for the new one."""
        while True:
            serving = call.serving = self.serving(target)
            description = ModelDescription(serving.model)
            job = make_job(description, self.max_body_bytes, self.limits.max_request_rows)
            request, form = await self._decoder.read(job, body)
            if not serving.batcher.closed:
                return self._admitted(request), serving.codec.encoder(request, form)

    async def _start_aside(self, call: InferenceCall, target: Target, make_job: MakeJob, body: Body) -> None:
        """Continue ``start`` for a large request."""
        try:
            request, encode = await self._decode_aside(call, target, make_job, body)
        except Exception as error:  # noqa: BLE001 - the client gets a response to every error
            call.end_with(error)
            return
        del body
        call.decoded(request.rows, encode)
        call.model.batcher.submit(request, call, call.timings)
