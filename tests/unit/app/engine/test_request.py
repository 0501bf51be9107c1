"""What a request keeps alive: nothing, once it has ended or its client has left."""

import asyncio
import gc
import threading
import weakref
from contextlib import contextmanager

import numpy as np
import pytest
from helpers.batching import BATCHED
from helpers.engine import Recorded, batcher_of, settle

from app.engine import batch_runner
from app.engine.request import InferenceRequest, Timings
from app.errors import AppError, InferenceFailedError
from app.runtime.runner import RunResult


class Body(np.ndarray):
    """A tensor that can be watched."""


class Model:
    name = "m"
    batched, batching = True, BATCHED
    gathers = False
    labelled = None

    def __init__(self, error=None):
        self.output_by_name = {}
        self.error = error
        self.open = threading.Event()
        self.open.set()
        self.running = threading.Event()

    def run(self, feeds, output_names, options=None):
        self.running.set()
        assert self.open.wait(60)
        if self.error is not None:
            raise self.error  # a class: a new error each time, as a kept one would keep its frames
        return RunResult([np.asarray(feeds["x"]) * 2])


@pytest.fixture(autouse=True)
def unlogged(monkeypatch):
    """pytest keeps what is logged, and with it the frames of errors."""
    monkeypatch.setattr(batch_runner.log, "disabled", True)


@contextmanager
def without_collector():
    gc.collect()
    gc.freeze()  # what other tests of this process left need not be looked through for each test here
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def body():
    return np.zeros((1, 2), np.float32).view(Body)


def send(batcher, ended, timeout_us=0):
    """Submit a request; a weak reference to its body, and its completion."""
    x = body()
    completion = Recorded(ended)
    batcher.submit(InferenceRequest({"x": x}, ("y",), 1, "k", 0, timeout_us), completion, completion.timings)
    return weakref.ref(x), completion


async def gone(references):
    async with asyncio.timeout(60):
        while any(reference() is not None for reference in references):
            await asyncio.sleep(0.001)


@pytest.mark.parametrize("error", [None, InferenceFailedError, MemoryError, ZeroDivisionError])
@pytest.mark.parametrize("inline_ns", [0, 10**12])
@pytest.mark.parametrize("count", [1, 3])
def test_a_request_that_has_ended_keeps_nothing(error, inline_ns, count):
    async def run():
        ended = []
        batcher = batcher_of(Model(error), 8, inline_ns, short=(1,))
        references = [send(batcher, ended)[0] for _ in range(count)]
        await settle(batcher)
        await gone(references)
        assert len(ended) == count
        batcher.close()

    with without_collector():
        asyncio.run(run())


@pytest.mark.parametrize("timeout_us", [0, 3_600_000_000])
def test_a_request_that_is_cancelled_in_the_queue_keeps_nothing(timeout_us):
    """Nor does the timer of its deadline."""

    async def run():
        batcher = batcher_of(Model(), 8, 10**12, delay_ns=10**12)
        reference, completion = send(batcher, [], timeout_us)
        batcher.cancel(completion)
        await gone([reference])
        assert batcher.idle

    with without_collector():
        asyncio.run(run())


def test_a_request_that_came_too_late_keeps_nothing():
    async def run():
        ended = []
        batcher = batcher_of(Model(), 8, 10**12, delay_ns=10**12)
        reference, _ = send(batcher, ended, timeout_us=1)
        await gone([reference])
        assert len(ended) == 1

    with without_collector():
        asyncio.run(run())


def test_a_request_that_is_cancelled_in_its_run_keeps_nothing_after_it():
    async def run():
        model = Model()
        model.open.clear()
        batcher = batcher_of(model, 8, 0)
        reference, completion = send(batcher, [])
        async with asyncio.timeout(60):
            while not model.running.is_set():
                await asyncio.sleep(0.001)
        batcher.cancel(completion)
        assert reference() is not None  # the run reads it
        model.open.set()
        await gone([reference])
        batcher.close()

    with without_collector():
        asyncio.run(run())


def test_a_refused_request_keeps_nothing():
    async def run():
        ended = []
        model = Model()
        model.open.clear()
        batcher = batcher_of(model, 1, 0, max_queue_rows=1)
        held = [send(batcher, ended)]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        held.append(send(batcher, ended))
        reference, refused = send(batcher, ended)
        assert ended == [refused]
        await gone([reference])
        model.open.set()
        await settle(batcher)
        batcher.close()

    with without_collector():
        asyncio.run(run())


@pytest.mark.parametrize("error", [None, InferenceFailedError, ZeroDivisionError])
@pytest.mark.parametrize("inline_ns", [0, 10**12])
def test_an_awaited_request_that_has_ended_keeps_nothing(error, inline_ns):
    async def run():
        batcher = batcher_of(Model(error), 8, inline_ns, short=(1,))

        async def infer(x):
            try:
                await batcher.run(InferenceRequest({"x": x}, ("y",), 1, "k"))
            except AppError as failure:
                return str(failure)

        async def send_one():
            x = body()
            reference = weakref.ref(x)
            said = await infer(x)
            assert (said is None) == (error is None)
            return reference

        references = [await send_one() for _ in range(3)]
        await settle(batcher)
        await gone(references)
        batcher.close()

    with without_collector():
        asyncio.run(run())


@pytest.mark.parametrize("running", [False, True])
def test_an_awaited_request_that_is_cancelled_keeps_nothing(running):
    async def run():
        model = Model()
        model.open.clear()
        batcher = batcher_of(model, 8, 0, delay_ns=0 if running else 10**12)

        def start():
            x = body()
            request = InferenceRequest({"x": x}, ("y",), 1, "k")
            return weakref.ref(x), asyncio.create_task(batcher.run(request))

        reference, task = start()
        async with asyncio.timeout(60):
            while not (model.running.is_set() if running else batcher.depth):
                await asyncio.sleep(0.001)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        del task
        model.open.set()
        await gone([reference])
        batcher.close()

    with without_collector():
        asyncio.run(run())


def test_timings_of_a_request_that_did_not_run_have_no_compute_time():
    timings = Timings(5)
    timings.input_ns = 3
    assert timings.compute_ns == 0
    timings.infer_ns, timings.output_ns = 4, 1
    assert timings.compute_ns == 8


def test_a_request_can_not_be_changed():
    request = InferenceRequest({"x": np.zeros((2, 3), np.float32)}, ("y",), 2, "k")
    with pytest.raises(AttributeError):
        request.rows = 3
    assert request.nbytes == 24
