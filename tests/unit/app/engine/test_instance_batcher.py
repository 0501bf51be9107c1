"""Several instances of a model behind one queue."""

import asyncio
import threading

import numpy as np
import pytest
from helpers.engine import Doubler, Recorded, names, settle, submit, zeros
from hypothesis import given, settings
from hypothesis import strategies as st

from app.engine.batching_options import BatchingOptions
from app.engine.instance_batcher import InstanceBatcher
from app.engine.request import InferenceRequest, Timings
from app.errors import InferenceFailedError, OverloadedError

LIMIT_S = 60


class Instance(Doubler):
    """One that waits in each run until it is let go, where it has to."""

    def __init__(self, device, gate=None):
        super().__init__()
        self.device = device
        self.gate = gate
        self.began = threading.Event()
        self.options = None

    def run(self, feeds, output_names, options=None):
        self.began.set()
        self.options = options
        if self.gate is not None:
            assert self.gate.wait(LIMIT_S)
        return super().run(feeds, output_names)


def batcher_of(*instances, max_rows=8, **options):
    model = Doubler()
    model.instances = instances
    return InstanceBatcher(model, BatchingOptions(max_rows, 0, **options))


async def until(condition):
    async with asyncio.timeout(LIMIT_S):
        while not condition():
            await asyncio.sleep(0.001)


def test_two_instances_run_at_the_same_time_from_one_queue():
    gate = threading.Event()
    instances = [Instance("cpu", gate), Instance("cpu", gate)]
    batcher, ended = batcher_of(*instances, max_queue_rows=1), []

    async def run():
        submit(batcher, np.full((8, 2), 1, np.float32), ended, "first")
        submit(batcher, np.full((8, 2), 2, np.float32), ended, "second")
        await until(lambda: all(instance.began.is_set() for instance in instances))
        assert ended == []
        assert not batcher.idle
        assert batcher.running_s > 0
        submit(batcher, zeros(), ended, "third")  # the queue has room for one
        submit(batcher, zeros(), ended, "fourth")
        assert names(ended) == ["fourth"]
        gate.set()
        await settle(batcher)
        batcher.close()

    asyncio.run(run())
    assert isinstance(ended[0].error, OverloadedError)
    results = {completion.name: completion.result.array(0)[0, 0] for completion in ended[1:]}
    assert results == {"first": 2, "second": 4, "third": 0}
    assert sum(batcher.runs_by_instance) == 3
    assert min(batcher.runs_by_instance) == 1
    assert batcher.statistics.executions == 3
    assert batcher.running_s == 0


def test_devices_share_the_runs():
    gate = threading.Event()
    devices = ["cuda:0", "cuda:0", "cuda:1", "cuda:1"]
    instances = [Instance(device, gate) for device in devices]
    batcher, ended = batcher_of(*instances), []

    async def run():
        for number in range(2):
            submit(batcher, zeros(8), ended, number)
        await until(lambda: sum(instance.began.is_set() for instance in instances) == 2)
        assert {instance.device for instance in instances if instance.began.is_set()} == {"cuda:0", "cuda:1"}
        gate.set()
        await settle(batcher)
        for number in range(40):  # one by one they go round
            submit(batcher, zeros(8), ended, number)
            await settle(batcher)
        batcher.close()

    asyncio.run(run())
    assert sorted(batcher.runs_by_instance) == [10, 10, 11, 11]
    assert len(ended) == 42


def test_what_comes_while_all_are_busy_is_the_next_batch():
    gate = threading.Event()
    instances = [Instance("cpu", gate), Instance("cpu", gate)]
    batcher, ended = batcher_of(*instances, max_rows=64), []

    async def run():
        for number in range(2):
            submit(batcher, zeros(), ended, number)
            await until(lambda running=number + 1: sum(each.began.is_set() for each in instances) == running)
        for number in range(2, 10):
            submit(batcher, zeros(), ended, number)
        assert batcher.depth == 8
        gate.set()
        await settle(batcher)
        batcher.close()

    asyncio.run(run())
    assert sorted(rows for instance in instances for rows, _ in instance.runs) == [1, 1, 8]


def test_cancelling_reaches_the_run_of_any_instance():
    gate = threading.Event()
    instances = [Instance("cpu", gate), Instance("cpu", gate)]
    batcher, ended = batcher_of(*instances, max_rows=1), []

    async def run():
        sent = [submit(batcher, zeros(), ended, number) for number in range(3)]
        await until(lambda: all(instance.began.is_set() for instance in instances))
        batcher.cancel(sent[1])
        assert [instance.options.terminate for instance in instances] == [False, True]
        batcher.cancel(sent[2])
        gate.set()
        await settle(batcher)
        batcher.close()

    asyncio.run(run())
    assert names(ended) == [0]


def test_a_failure_of_one_instance_is_told_to_its_requests_alone():
    batcher, ended = batcher_of(Instance("cpu"), Instance("cpu"), max_rows=1), []

    async def run():
        submit(batcher, np.full((1, 2), 666, np.float32), ended, "bad")
        submit(batcher, zeros(), ended, "good")
        await settle(batcher)
        batcher.close()

    asyncio.run(run())
    assert {completion.name: type(completion.error) for completion in ended} == {
        "bad": InferenceFailedError,
        "good": type(None),
    }


def test_requests_are_refused_while_no_thread_can_be_started(monkeypatch):
    batcher, ended = batcher_of(Instance("cpu"), Instance("cpu")), []

    def start(_):
        raise RuntimeError("can't start new thread")

    async def run():
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", start)
            submit(batcher, zeros(), ended, "refused")
            await settle(batcher)
        submit(batcher, zeros(), ended, "answered")
        await settle(batcher)
        batcher.close()

    asyncio.run(run())
    assert names(ended) == ["refused", "answered"]
    assert "cannot start a thread: can't start new thread" in str(ended[0].error)
    assert ended[1].error is None


@pytest.mark.parametrize("closed", [False, True])
def test_a_closed_batcher_ends_its_threads_and_answers_what_was_queued(closed):
    batcher, ended = batcher_of(Instance("cpu"), Instance("cpu"), max_rows=1), []

    async def run():
        for number in range(5):
            submit(batcher, zeros(), ended, number)
        if closed:
            batcher.close()
            submit(batcher, zeros(), ended, "late")
        await settle(batcher)
        if not closed:
            batcher.close()

    asyncio.run(run())
    assert sorted(str(completion.name) for completion in ended if completion.error is None) == list("01234")
    with pytest.raises(RuntimeError, match="shutdown"):
        batcher._lanes[0].thread.submit(print)


def test_deadlines_count_while_all_are_busy():
    gate = threading.Event()
    batcher, ended = batcher_of(Instance("cpu", gate), max_rows=1), []

    async def run():
        submit(batcher, zeros(), ended, "first")
        late = Recorded(ended, "late")
        request = InferenceRequest({"x": zeros()}, ("y",), 1, "k", timeout_us=1000)
        batcher.submit(request, late, Timings(1))
        await until(lambda: ended)
        gate.set()
        await settle(batcher)
        batcher.close()

    asyncio.run(run())
    assert names(ended) == ["late", "first"]
    assert "longer than its timeout" in str(ended[0].error)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 9), st.sampled_from([2, 3]), st.integers(0, 2)), min_size=1, max_size=30),
    st.integers(1, 12),
    st.integers(1, 4),
    st.sampled_from([0, 200_000]),
)
def test_the_right_rows_go_back_to_the_right_request(arrived, max_rows, count, delay_ns):
    instances = [Instance(f"cuda:{number % 2}") for number in range(count)]
    batcher, ended, sent = batcher_of(*instances, max_rows=max_rows, delay_ns=delay_ns), [], {}

    async def run():
        for number, (rows, width, pause) in enumerate(arrived):
            sent[number] = np.full((rows, width), number, np.float32) + np.arange(rows, dtype=np.float32)[:, None] / 16
            submit(batcher, sent[number], ended, number)
            for _ in range(pause):
                await asyncio.sleep(0)
        await settle(batcher)
        batcher.close()

    asyncio.run(run())
    assert sorted(names(ended)) == list(sent)
    for completion in ended:
        np.testing.assert_array_equal(completion.result.array(0), 2 * sent[completion.name])
    assert sum(batcher.runs_by_instance) == batcher.statistics.executions


def test_every_instance_is_warmed_up():
    instances = [Instance("cuda:0"), Instance("cuda:1")]
    model = Doubler()
    model.instances = instances
    model.random_feeds = lambda rows: {"x": zeros(rows)}
    batcher = InstanceBatcher(model, BatchingOptions(8, 0))
    batcher.warm_up()
    assert [[rows for rows, _ in instance.runs] for instance in instances] == [[1, 1, 8, 8]] * 2
    assert batcher.cost.known_ns(8) > 0
