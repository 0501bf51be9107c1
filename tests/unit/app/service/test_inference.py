import asyncio
import gc
import json
import weakref
from collections import Counter
from contextlib import asynccontextmanager

import numpy as np
import pytest

from app.application import create_app
from app.config.settings import Settings
from app.engine.codec.model_codec import ModelCodec
from app.errors import BodyTooLargeError, ModelUnavailableError, OverloadedError
from app.http.endpoint import answer
from app.service.inference import Target
from app.service.inference_call import CANCELLED, RequestIds

ROWS = [[0.5, -1.0, 2.0, 0.25, 0.0, 1.5]]
BODY = json.dumps({"inputs": ROWS}).encode()
OCTETS = np.array(ROWS, np.float32).tobytes()
BINARY = {b"content-type": b"application/octet-stream", b"accept": b"application/octet-stream"}
TARGET = Target(None, None)


@pytest.fixture
def service(tiny_dir):
    @asynccontextmanager
    async def open_service(**settings):
        state = create_app(Settings(model_dir=tiny_dir, device="cpu", trial_load_s=0, **settings)).state.panther
        await state.control.load_all()
        state.repository.starting = False
        try:
            yield state.service
        finally:
            for serving in state.repository.servings():
                serving.batcher.close()

    return open_service


def serving_of(service):
    return next(iter(service.repository.servings()))


class Answers(list):
    def __call__(self, status, headers, body):
        self.append((status, dict(headers), body))


def test_both_paths_answer_alike_and_are_counted(service, tiny):
    async def run():
        async with service() as made:
            answers = Answers()
            made.start(TARGET, {b"x-request-id": b"a"}, b"", BODY, answers)
            async with asyncio.timeout(60):
                while not answers:
                    await asyncio.sleep(0.001)
            status, headers, body = await made.infer(TARGET, {b"x-request-id": b"a"}, b"", BODY)
            (statistics,) = made.repository.statistics().values()
            return answers[0], (status, dict(headers), body), statistics

    fast, awaited, statistics = asyncio.run(run())
    assert fast == awaited
    assert fast[0] == 200
    assert fast[1][b"x-request-id"] == b"a"
    np.testing.assert_allclose(json.loads(fast[2])["outputs"]["logits"], tiny.logits(np.array(ROWS)), rtol=1e-4)
    assert (statistics.success.count, statistics.rows, statistics.executions) == (2, 2, 2)


@pytest.mark.parametrize(
    ("target", "headers", "body", "status", "reason", "settings"),
    [
        (Target("none", None), {}, BODY, 404, "ModelNotFoundError", {}),
        (TARGET, {}, b"{", 400, "InvalidRequestError", {}),
        (TARGET, {b"content-encoding": b"x"}, BODY, 415, "UnsupportedMediaTypeError", {}),
        (TARGET, {}, json.dumps({"inputs": ROWS * 3}).encode(), 413, "BodyTooLargeError", {"max_request_rows": 2}),
    ],
)
def test_both_paths_refuse_alike(service, target, headers, body, status, reason, settings):
    async def run():
        async with service(**settings) as made:
            answers = Answers()
            made.start(target, {b"x-request-id": b"a", **headers}, b"", body, answers)
            found = await made.infer(target, {b"x-request-id": b"a", **headers}, b"", body)
            failures = Counter(serving_of(made).batcher.statistics.failures)
            failures.update({name: count for (_, name), count in made.unrouted.items()})
            return answers, (found[0], dict(found[1]), found[2]), failures

    answers, awaited, failures = asyncio.run(run())
    assert answers == [awaited]
    assert awaited[0] == status
    assert list(json.loads(awaited[2])) == ["error"]
    assert failures == {reason: 2}


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [(ZeroDivisionError, 500, "internal error"), (MemoryError, 503, "not enough memory for this request")],
)
def test_a_defect_in_decoding_is_answered_and_logged(service, monkeypatch, caplog, error, status, said):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(ModelCodec, "read", fail)

    async def run():
        async with service() as made:
            return await made.infer(TARGET, {}, b"", BODY)

    found = asyncio.run(run())
    assert (found[0], json.loads(found[2])) == (status, {"error": said})
    assert ("decoding a request failed" in caplog.text) == (status == 500)


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [(ZeroDivisionError, 500, "internal error"), (MemoryError, 503, "not enough memory for this response")],
)
def test_a_defect_in_encoding_is_answered_and_logged(service, monkeypatch, caplog, error, status, said):
    def fail(_):
        raise error

    async def run():
        async with service() as made:
            monkeypatch.setattr(ModelCodec, "encoder", lambda *_: fail)
            return await made.infer(TARGET, {}, b"", BODY)

    found = asyncio.run(run())
    assert (found[0], json.loads(found[2])) == (status, {"error": said})
    assert ("encoding a response failed" in caplog.text) == (status == 500)


@pytest.fixture
def queued(service):
    """A service whose requests stay in the queue until the delay of an hour is over."""

    @asynccontextmanager
    async def open_service():
        async with service() as made:
            batcher = serving_of(made).batcher
            batcher.options = type(batcher.options)(64, 0, delay_ns=3600 * 10**9)
            yield made, batcher

    return open_service


def test_a_client_that_leaves_withdraws_its_request_and_gets_no_answer(queued):
    async def run():
        async with queued() as (made, batcher):
            answers = Answers()
            call = made.start(TARGET, {}, b"", BODY, answers)
            assert batcher.depth == 1
            call.cancel()
            call.cancel()
            assert batcher.depth == 0
            assert batcher.statistics.failures == {CANCELLED: 1}
            return answers

    assert asyncio.run(run()) == []


def test_cancelling_the_task_withdraws_the_request(queued):
    async def run():
        async with queued() as (made, batcher):
            task = asyncio.create_task(made.infer(TARGET, {}, b"", BODY))
            await asyncio.sleep(0)
            assert batcher.depth == 1
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled()
            assert batcher.depth == 0
            assert batcher.statistics.failures == {CANCELLED: 1}

    asyncio.run(run())


def test_a_request_can_be_ended_with_an_error_while_it_is_queued(queued):
    async def run():
        async with queued() as (made, batcher):
            answers = Answers()
            call = made.start(TARGET, {}, b"", BODY, answers)
            call.fail(ModelUnavailableError("the server is shutting down"))
            call.cancel()
            assert batcher.depth == 0
            assert batcher.statistics.failures == {"ModelUnavailableError": 1}
            return answers

    ((status, _, body),) = asyncio.run(run())
    assert (status, json.loads(body)) == (503, {"error": "the server is shutting down"})


def test_a_refusal_is_an_answer_that_is_counted(service):
    async def run():
        async with service() as made:
            answers = Answers()
            made.refuse(Target(None, None, "oip"), {}, answers, BodyTooLargeError("too large"))
            return answers, made.unrouted

    answers, unrouted = asyncio.run(run())
    assert (answers[0][0], json.loads(answers[0][2])) == (413, {"error": "too large"})
    assert unrouted == {("oip", "BodyTooLargeError"): 1}


def test_a_client_of_the_asgi_path_that_disconnects_withdraws_its_request(queued):
    async def run():
        async with queued() as (made, batcher):
            messages = asyncio.Queue()
            messages.put_nowait({"type": "http.request", "body": BODY, "more_body": False})
            sent = []

            async def send(message):
                sent.append(message)

            scope = {"headers": [], "query_string": b""}
            task = asyncio.create_task(answer(made, TARGET, scope, messages.get, send))
            async with asyncio.timeout(60):
                while not batcher.depth:
                    await asyncio.sleep(0.001)
                messages.put_nowait({"type": "http.disconnect"})
                await task
                while batcher.depth:
                    await asyncio.sleep(0.001)
            assert batcher.statistics.failures == {CANCELLED: 1}
            return sent

    assert asyncio.run(run()) == []


class Body(bytearray):
    """A body that can be watched."""


@pytest.mark.parametrize(
    "way", ["answered", "refused", "failed", "overloaded", "cancelled", "awaited", "awaited, cancelled"]
)
def test_a_request_that_has_ended_keeps_no_body(service, way, monkeypatch):
    """Although the connection still refers to the call, and the collector never runs."""

    async def run():
        async with service() as made:
            batcher = serving_of(made).batcher
            if way == "overloaded":
                monkeypatch.setattr(batcher, "why_full", lambda: OverloadedError("too much to do"))
            if "cancelled" in way:
                batcher.options = type(batcher.options)(64, 0, delay_ns=3600 * 10**9)
            content = {"refused": OCTETS[1:], "failed": b""}.get(way, OCTETS)
            answers = Answers()
            statuses = {"answered": [200], "refused": [400], "failed": [404], "overloaded": [503]}

            def start():
                body = Body(content)
                if way.startswith("awaited"):
                    return weakref.ref(body), asyncio.create_task(made.infer(TARGET, dict(BINARY), b"", body))
                target = Target("none", None) if way == "failed" else TARGET
                return weakref.ref(body), made.start(target, dict(BINARY), b"", body, answers)

            reference, call = start()
            await asyncio.sleep(0)
            if "cancelled" in way:
                assert reference() is not None
                call.cancel()
            if way.startswith("awaited"):
                await asyncio.wait([call])
                del call  # a task that was cancelled keeps the frames that it was in
            async with asyncio.timeout(60):
                while reference() is not None:
                    await asyncio.sleep(0.001)
                while not answers and way in statuses:
                    await asyncio.sleep(0.001)
            assert [status for status, *_ in answers] == statuses.get(way, [])

    gc.collect()
    gc.disable()
    try:
        asyncio.run(run())
    finally:
        gc.enable()


def test_ids_are_echoed_where_they_are_fit_and_new_otherwise():
    ids = RequestIds()
    assert ids.of({b"x-request-id": b"abc"}) == b"abc"
    made = {ids.of({}), ids.of({b"x-request-id": b"a b"}), ids.of({b"x-request-id": b"x" * 129}), RequestIds().of({})}
    assert len(made) == 4
    assert not made & {b"abc", b"a b"}
