"""Inference requests over gRPC in the service: answers, counters, reservations, cancelled calls and deadlines."""

import asyncio
import gc
from collections import Counter
from contextlib import asynccontextmanager

import numpy as np
import pytest
from helpers.grpc_client import infer_request, pb
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from app.application import create_app
from app.config.settings import Settings
from app.errors import DeadlineExceededError, InvalidRequestError, ModelNotFoundError, OverloadedError
from app.grpc.inference import Inference
from app.service.admission import SLICE_NS
from app.service.inference_call import CANCELLED
from app.telemetry.statistics import GRPC
from app.telemetry.tracing import Tracing

ROWS = np.array([[0.5, -1.0, 2.0, 0.25, 0.0, 1.5]], np.float32)


@pytest.fixture
def inference(tiny_dir):
    @asynccontextmanager
    async def open_inference(**settings):
        state = create_app(Settings(model_dir=tiny_dir, device="cpu", trial_load_s=0, **settings)).state.panther
        await state.control.load_all()
        state.repository.starting = False
        try:
            yield Inference(state.service), state.service
        finally:
            for serving in state.repository.servings():
                serving.batcher.close()

    return open_inference


def message(model="tiny", **options):
    return infer_request(model, raw=ROWS.tobytes(), **options).SerializeToString()


def statistics_of(service):
    return next(iter(service.repository.servings())).batcher.statistics


def no_deadline():
    return None


def sent(content):
    """What a client sends, to be received."""

    async def receive():
        return content

    return receive


def test_an_answer_is_counted_and_frees_what_it_reserved(inference, tiny):
    async def run():
        async with inference() as (made, service):
            error, headers, content = await made.infer(sent(message()), {b"x-request-id": b"a"}, no_deadline)
            part = statistics_of(service).parts[GRPC]
            counted = (part.success, part.rows)
            return error, dict(headers), content, counted, (service.admission.reserved_bytes, made.calls)

    error, headers, content, counted, left = asyncio.run(run())
    assert error is None
    assert headers == {b"x-request-id": b"a"}
    answer = pb.ModelInferResponse.FromString(content)
    logits = np.frombuffer(answer.raw_output_contents[0], np.float32).reshape(1, -1)
    np.testing.assert_allclose(logits, tiny.logits(ROWS), rtol=1e-4)
    assert counted == (1, 1)
    assert left == (0, set())


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"\xff", InvalidRequestError),
        (object(), InvalidRequestError),
        (message(shape=(1, 5)), InvalidRequestError),
        (message("nobody"), ModelNotFoundError),
    ],
)
def test_an_error_is_counted_and_frees_what_was_reserved(inference, content, kind):
    async def run():
        async with inference() as (made, service):
            error, _, answer = await made.infer(sent(content), {}, no_deadline)
            counts = Counter(statistics_of(service).parts[GRPC].failures)
            counts += Counter({reason: count for (_, reason), count in service.unrouted.items()})
            return error, answer, counts, service.admission.reserved_bytes

    error, answer, counts, reserved = asyncio.run(run())
    assert type(error) is kind
    assert answer == b""
    assert counts == {kind.__name__: 1}
    assert reserved == 0


def test_a_model_without_a_name_is_the_default_one(inference):
    async def run():
        async with inference() as (made, _):
            return await made.infer(sent(message("")), {}, no_deadline)

    error, _, content = asyncio.run(run())
    assert error is None
    assert pb.ModelInferResponse.FromString(content).model_name == "tiny"


def test_messages_count_against_the_budget_of_bodies(inference):
    async def run():
        async with inference(max_queue_bytes=1024) as (made, service):
            service.admission.reserved_bytes = 1000
            return (await made.infer(sent(message()), {}, no_deadline))[0]

    error = asyncio.run(run())
    assert type(error) is OverloadedError
    assert "max_queue_bytes (1024)" in str(error)


def test_decoding_has_its_share_of_a_turn_of_the_loop(inference):
    async def run():
        async with inference() as (made, service):
            service.admission._slice_ns = 0
            asked = [asyncio.ensure_future(made.infer(sent(message()), {}, no_deadline)) for _ in range(3)]
            await asyncio.sleep(0)
            waiting, service.admission._slice_ns = service.admission.waiting, SLICE_NS
            return waiting, [error for error, _, _ in await asyncio.gather(*asked)]

    waiting, errors = asyncio.run(run())
    assert waiting == 2
    assert errors == [None] * 3


def test_a_cancelled_call_is_withdrawn_and_its_memory_freed(inference):
    async def run():
        async with inference(inline_run_us=0) as (made, service):
            batcher = next(iter(service.repository.servings())).batcher
            asked = asyncio.ensure_future(made.infer(sent(message()), {}, no_deadline))
            await asyncio.sleep(0)
            assert batcher.depth == 1
            gc.disable()  # nothing waits for the collector
            try:
                asked.cancel()
                await asyncio.wait({asked})
                assert asked.cancelled()
                del asked
                async with asyncio.timeout(60):
                    while service.admission.reserved_bytes:  # by a run that has begun
                        await asyncio.sleep(0.001)
                return batcher.depth, service.admission.reserved_bytes, statistics_of(service).parts[GRPC].failures
            finally:
                gc.enable()

    depth, reserved, failures = asyncio.run(run())
    assert (depth, reserved) == (0, 0)
    assert failures == {CANCELLED: 1}


def test_a_deadline_that_passed_is_counted_as_one(inference):
    async def run():
        async with inference(inline_run_us=0) as (made, service):
            left = [1.0]
            asked = asyncio.ensure_future(made.infer(sent(message()), {}, lambda: left[0]))
            await asyncio.sleep(0)
            left[0] = -0.001
            asked.cancel()  # as gRPC does
            with pytest.raises(asyncio.CancelledError):
                await asked
            return statistics_of(service).parts[GRPC].failures

    assert asyncio.run(run()) == {DeadlineExceededError.__name__: 1}


def test_a_message_is_not_received_without_a_key(inference):
    async def receive():
        raise AssertionError("it was received")

    async def run():
        async with inference(predict_keys="k" * 16) as (made, service):
            error, _, _ = await made.infer(receive, {}, no_deadline)
            return error, dict(service.unrouted)

    error, counts = asyncio.run(run())
    assert str(error).startswith("an API key is required")
    assert counts == {(GRPC, "UnauthorizedError"): 1}


def test_a_call_that_is_answered_and_cancelled_at_once_is_counted_once(inference):
    async def run():
        async with inference(inline_run_us=0) as (made, service):
            asked = asyncio.ensure_future(made.infer(sent(message()), {}, lambda: 0.0))
            await asyncio.sleep(0)
            (call,) = made.calls
            call.fail(DeadlineExceededError("the request waited"))
            asked.cancel()  # before it has taken its answer
            await asyncio.wait({asked})
            return asked.cancelled(), statistics_of(service).parts[GRPC].failures

    assert asyncio.run(run()) == (True, {DeadlineExceededError.__name__: 1})


def test_a_trace_is_continued_and_says_that_it_is_of_grpc(inference, monkeypatch):
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr("app.application.otlp_tracing", lambda: Tracing(provider))
    trace, parent = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"

    async def run():
        async with inference(tracing="otlp") as (made, _):
            headers = {b"traceparent": f"00-{trace}-{parent}-01".encode()}
            return dict((await made.infer(sent(message()), headers, no_deadline))[1])

    headers = asyncio.run(run())
    assert headers[b"traceresponse"].startswith(f"00-{trace}-".encode())
    (span,) = [span for span in exporter.get_finished_spans() if span.name == "inference tiny"]
    assert format(span.parent.span_id, "016x") == parent
    assert span.attributes["panther.protocol"] == "grpc"
    assert span.attributes["rpc.method"] == "ModelInfer"
    assert not any(name.startswith("http.") for name in span.attributes)
