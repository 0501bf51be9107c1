"""OpenTelemetry traces of inference requests, optional; the extra ``otel`` installs the packages.

A request's spans are made when it ends, from timestamps that are recorded anyway, so requests pay nothing
before. OpenTelemetry's variables set the destination (``OTEL_EXPORTER_OTLP_ENDPOINT``, …).

See docs/decisions/0029-spans-at-the-end-of-a-request.md.
"""

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import app
from app.errors import AppError
from app.telemetry.statistics import GRPC

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import TracerProvider

_CONTEXT_HEADERS = ((b"traceparent", "traceparent"), (b"tracestate", "tracestate"))


@dataclass(frozen=True, slots=True)
class RequestTrace:
    """One completed inference request, for its spans.

    Moments are values of ``time.perf_counter_ns``; 0 means not reached.

    Attributes:
        protocol: ``oip``, ``plain`` or ``grpc``.
        parent: Trace context of the request.
        status: HTTP status of the response, also over gRPC.
        error: Kind of the error, None for success.
        model, version, rows: None if the request matched no model, or was not decoded.
        began_ns, decoded_ns, queued_ns: Moments of arrival, decoding and queuing.
        queue_ns, compute_ns: Time in the queue, and duration of the run.
        encode_ns: Moment at which encoding of the response began.
    """

    protocol: str
    request_id: str
    parent: "Context | None"
    status: int
    error: str | None
    model: str | None
    version: str | None
    rows: int | None
    began_ns: int
    decoded_ns: int
    queued_ns: int
    queue_ns: int
    compute_ns: int
    encode_ns: int


class TracingError(AppError):
    """Tracing is enabled but cannot be started."""


class Tracing:
    """Makes the spans of requests.

    Args:
        provider: Tracer provider of OpenTelemetry's SDK.
    """

    def __init__(self, provider: "TracerProvider") -> None:
        from opentelemetry import trace
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._api = trace
        self._provider = provider
        self._tracer = provider.get_tracer("panther", app.__version__)
        self._propagator = TraceContextTextMapPropagator()

    def parent(self, headers: dict[bytes, bytes]) -> "Context":
        """The parent context of a request (W3C ``traceparent`` and ``tracestate``), or an empty one."""
        from opentelemetry.context import Context

        carrier = {name: headers[key].decode("latin-1") for key, name in _CONTEXT_HEADERS if key in headers}
        return self._propagator.extract(carrier, Context())

    def end(self, request: RequestTrace) -> tuple[bytes, bytes]:
        """Make the spans of a request just before its response is sent.

        Returns:
            The header ``traceresponse``, which lets a client find the trace.
        """
        now = time.perf_counter_ns()
        since_1970 = time.time_ns() - now
        attributes: dict[str, str | int] = {
            "panther.protocol": request.protocol,
            "panther.request_id": request.request_id,
        }
        if request.protocol == GRPC:
            attributes |= {
                "rpc.system": "grpc",
                "rpc.service": "inference.GRPCInferenceService",
                "rpc.method": "ModelInfer",
            }
        else:
            attributes |= {"http.request.method": "POST", "http.response.status_code": request.status}
        name = "inference"
        if request.model is not None and request.version is not None:
            name = f"inference {request.model}"
            attributes["panther.model"] = request.model
            attributes["panther.version"] = request.version
        if request.rows is not None:
            attributes["panther.rows"] = request.rows
        if request.error is not None:
            attributes["error.type"] = request.error
        span = self._tracer.start_span(
            name,
            request.parent,
            self._api.SpanKind.SERVER,
            attributes,
            start_time=since_1970 + request.began_ns,
        )
        if span.is_recording():
            inside = self._api.set_span_in_context(span)
            for part, begin, end in _parts(request, now):
                child = self._tracer.start_span(part, inside, start_time=since_1970 + begin)
                child.end(since_1970 + end)
            if request.status >= 500:
                span.set_status(self._api.StatusCode.ERROR)
        span.end(since_1970 + now)
        ids = span.get_span_context()
        return b"traceresponse", b"00-%032x-%016x-%02x" % (ids.trace_id, ids.span_id, ids.trace_flags)

    def close(self) -> None:
        """Send pending spans."""
        self._provider.shutdown()


def _parts(request: RequestTrace, now: int) -> list[tuple[str, int, int]]:
    """Name, start and end of each stage that the request reached."""
    if not request.decoded_ns:
        return [("decode", request.began_ns, now)]
    parts = [("decode", request.began_ns, request.decoded_ns)]
    if not request.queued_ns:
        return parts
    if not request.queue_ns:
        return [*parts, ("queue", request.queued_ns, now)]
    taken = request.queued_ns + request.queue_ns
    parts.append(("queue", request.queued_ns, taken))
    if request.compute_ns:
        parts.append(("compute", taken, taken + request.compute_ns))
    if request.encode_ns:
        parts.append(("encode", request.encode_ns, now))
    return parts


def otlp_tracing() -> Tracing:
    """Tracing with export by OTLP over HTTP.

    Raises:
        TracingError: The packages are not installed.
    """
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise TracingError(
            f"tracing=otlp requires the extra 'otel' (pip install 'panther-sketch[otel]'): {error}"
        ) from None
    # Merged last, so environment variables take precedence.
    named = Resource({SERVICE_NAME: "panther", SERVICE_VERSION: app.__version__}).merge(OTELResourceDetector().detect())
    provider = TracerProvider(resource=Resource.create().merge(named), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return Tracing(provider)
