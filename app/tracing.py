"""OpenTelemetry traces of inference requests, for those who ask for them; the extra ``otel`` brings the packages.

A request's spans are made when it ends, out of the moments that are taken down anyway, so that nothing is paid for on
the way. Where they go is said by OpenTelemetry's own variables (``OTEL_EXPORTER_OTLP_ENDPOINT``, …).
"""

import time
from typing import TYPE_CHECKING

import app
from app.errors import AppError

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import TracerProvider

    from app.inference import Exchange

_CONTEXT_HEADERS = ((b"traceparent", "traceparent"), (b"tracestate", "tracestate"))


class TracingError(AppError):
    """Tracing was asked for and can't be had."""


class Tracing:
    """Makes the spans of requests.

    Args:
        provider: of OpenTelemetry's SDK.
    """

    def __init__(self, provider: "TracerProvider") -> None:
        from opentelemetry import trace
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._api = trace
        self._provider = provider
        self._tracer = provider.get_tracer("panther", app.__version__)
        self._propagator = TraceContextTextMapPropagator()

    def parent(self, headers: dict[bytes, bytes]) -> "Context":
        """The context that a request came in (W3C ``traceparent`` and ``tracestate``); an empty one without."""
        from opentelemetry.context import Context

        carrier = {name: headers[key].decode("latin-1") for key, name in _CONTEXT_HEADERS if key in headers}
        return self._propagator.extract(carrier, Context())

    def end(self, exchange: "Exchange", status: int, error: str | None, encode_ns: int = 0) -> tuple[bytes, bytes]:
        """Make the spans of a request that is about to be answered.

        Args:
            exchange: the request.
            status: of the answer.
            error: the kind of the error, None for success.
            encode_ns: when writing the answer began, on ``time.perf_counter_ns``; 0 where it did not.

        Returns:
            The header ``traceresponse``, by which a client finds the trace.
        """
        now = time.perf_counter_ns()
        since_1970 = time.time_ns() - now
        serving, call = exchange.serving, exchange.call
        attributes: dict[str, str | int] = {
            "http.request.method": "POST",
            "http.response.status_code": status,
            "panther.protocol": "oip" if exchange.oip else "plain",
            "panther.request_id": exchange.request_id.decode("latin-1"),
        }
        name = "inference"
        if serving is not None:
            name = f"inference {serving.model.name}"
            attributes["panther.model"] = serving.model.name
            attributes["panther.version"] = serving.model.version
        if call is not None:
            attributes["panther.rows"] = call.rows
        if error is not None:
            attributes["error.type"] = error
        span = self._tracer.start_span(
            name,
            exchange.trace_parent,
            self._api.SpanKind.SERVER,
            attributes,
            start_time=since_1970 + exchange.began_ns,
        )
        if span.is_recording():
            inside = self._api.set_span_in_context(span)
            for part, begin, end in _parts(exchange, now, encode_ns):
                child = self._tracer.start_span(part, inside, start_time=since_1970 + begin)
                child.end(since_1970 + end)
            if status >= 500:
                span.set_status(self._api.StatusCode.ERROR)
        span.end(since_1970 + now)
        ids = span.get_span_context()
        return b"traceresponse", b"00-%032x-%016x-%02x" % (ids.trace_id, ids.span_id, ids.trace_flags)

    def close(self) -> None:
        """Send what is left."""
        self._provider.shutdown()


def _parts(exchange: "Exchange", now: int, encode_ns: int) -> list[tuple[str, int, int]]:
    """Name, begin and end of what the request went through, as far as it came."""
    if not exchange.decoded_ns:
        return [("decode", exchange.began_ns, now)]
    parts = [("decode", exchange.began_ns, exchange.decoded_ns)]
    call = exchange.call
    if call is None or not call.queued_ns:
        return parts
    if not call.queue_ns:
        return [*parts, ("queue", call.queued_ns, now)]
    taken = call.queued_ns + call.queue_ns
    parts.append(("queue", call.queued_ns, taken))
    if call.infer_ns:
        parts.append(("compute", taken, taken + call.input_ns + call.infer_ns + call.output_ns))
    if encode_ns:
        parts.append(("encode", encode_ns, now))
    return parts


def otlp_tracing() -> Tracing:
    """Traces that are sent by OTLP over HTTP.

    Raises:
        TracingError: the packages are not installed.
    """
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise TracingError(
            f"tracing=otlp needs the extra 'otel' (pip install 'panther-sketch[otel]'): {error}"
        ) from None
    # Merged last, so that the variables of the environment are stronger.
    named = Resource({SERVICE_NAME: "panther", SERVICE_VERSION: app.__version__}).merge(OTELResourceDetector().detect())
    provider = TracerProvider(resource=Resource.create().merge(named), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return Tracing(provider)
