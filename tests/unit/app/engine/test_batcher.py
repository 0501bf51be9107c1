import asyncio
import threading
import time
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from helpers.batching import UNBATCHED
from helpers.engine import Doubler, Recorded, batcher_of, names, settle, submit, zeros
from hypothesis import given, settings
from hypothesis import strategies as st

from app.engine.request import InferenceRequest, Timings
from app.errors import DeadlineExceededError, InferenceFailedError, ModelUnavailableError, OverloadedError
from app.runtime.runner import RunResult


class Unbatched(Doubler):
    batched, batching = False, UNBATCHED


@st.composite
def arrivals(draw):
    """Requests of several widths, outputs and sizes; some poisoned, some cancelled; pauses of the loop in between."""
    return draw(
        st.lists(
            st.tuples(
                st.integers(1, 9),  # rows
                st.sampled_from([2, 3]),  # width
                st.sampled_from([("y",), ("z",), ("z", "y")]),
                st.sampled_from(["good", "good", "good", "good", "poisoned", "cancelled"]),
                st.integers(0, 3),  # turns of the loop to wait before the next
                st.integers(0, 2),  # priority
            ),
            min_size=1,
            max_size=40,
        )
    )


@settings(max_examples=300, deadline=None)
@given(arrivals(), st.integers(1, 12), st.sampled_from([0, 10**12]))
def test_the_right_rows_go_back_to_the_right_request(arrived, max_rows, inline_ns):
    model = Doubler()

    async def run():
        batcher = batcher_of(model, max_rows, inline_ns, short=(1,) if inline_ns else ())
        ended, sent = [], {}
        for number, (rows, width, outputs, kind, pause, priority) in enumerate(arrived):
            x = np.full((rows, width), number, np.float32) + np.arange(rows, dtype=np.float32)[:, None] / 16
            if kind == "poisoned":
                x[-1, 0] = 666
            sent[number] = (x, outputs, kind)
            completion = submit(batcher, x, ended, number, outputs, priority=priority)
            if kind == "cancelled" and completion not in ended:  # else it was run as it came
                sent[number] = (x, outputs, "gone")
                batcher.cancel(completion)
            for _ in range(pause):
                await asyncio.sleep(0)
        await settle(batcher)
        batcher.close()
        return ended, sent

    ended, sent = asyncio.run(run())
    expected = [number for number, (_, _, kind) in sent.items() if kind != "gone"]
    assert Counter(names(ended)) == Counter(expected)
    for completion in ended:
        x, outputs, kind = sent[completion.name]
        if kind == "poisoned":
            assert isinstance(completion.error, InferenceFailedError)
            continue
        assert completion.error is None
        for index, name in enumerate(outputs):
            np.testing.assert_array_equal(completion.result.array(index), x * (2 if name == "y" else 3))
    assert all(rows <= max_rows for rows, _ in model.runs)


@pytest.mark.parametrize("inline_ns", [0, 10**12])
def test_a_defect_of_the_server_leaves_no_client_waiting(inline_ns, caplog):
    """Neither one in what is counted for a run, nor one in how another client is answered."""

    class Forgetful(Doubler):
        def run(self, feeds, output_names, options=None):
            return RunResult([feeds["x"]], input_ns=None)

    class Broken(Recorded):
        def completed(self, result):
            raise ZeroDivisionError

    async def run(model, first):
        ended = []
        batcher = batcher_of(model, 8, inline_ns, short=(1,))
        request = InferenceRequest({"x": zeros()}, ("y",), 1, (("y",), (2,)))
        batcher.submit(request, first(ended, "first"), Timings())
        submit(batcher, zeros(), ended, "second")
        await settle(batcher)
        batcher.close()
        return [(completion.name, completion.error and str(completion.error)) for completion in ended]

    failed = "model 'doubler' failed"
    assert asyncio.run(run(Forgetful(), Recorded)) == [("first", failed), ("second", failed)]
    assert asyncio.run(run(Doubler(), Broken)) == [("second", None)]
    assert "cannot deliver a response" in caplog.text


def test_requests_of_one_turn_of_the_loop_run_together():
    model, ended = Doubler(), []

    async def run():
        batcher = batcher_of(model, 64, 10**12, short=(1,))
        for number in range(10):
            submit(batcher, np.full((1, 2), number, np.float32), ended, number)
        await settle(batcher)
        return batcher

    batcher = asyncio.run(run())
    assert [rows for rows, _ in model.runs] == [10]
    assert names(ended) == list(range(10))
    assert (batcher.statistics.executions, batcher.statistics.executed_rows) == (1, 10)


def test_requests_that_arrive_while_a_batch_runs_are_the_next_batch():
    model, ended = Doubler(), []

    async def run():
        batcher = batcher_of(model, 64, 0)  # everything on the model's thread
        submit(batcher, zeros(), ended)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        for _ in range(5):
            submit(batcher, zeros(), ended)
        await settle(batcher)
        batcher.close()

    asyncio.run(run())
    assert [rows for rows, _ in model.runs] == [1, 5]


@pytest.mark.parametrize("inline_ns", [0, 10**12])
def test_a_request_without_rows_is_answered_without_rows(inline_ns):
    model, ended = Doubler(), []

    async def run():
        batcher = batcher_of(model, 64, inline_ns)
        for rows in (0, 0, 2, 0):  # the last one finds the model known and idle
            submit(batcher, zeros(rows), ended, rows)
            await settle(batcher)
        batcher.close()

    asyncio.run(run())
    assert [completion.result.array(0).shape for completion in ended] == [(0, 2), (0, 2), (2, 2), (0, 2)]


def test_requests_are_refused_while_no_thread_can_be_started(monkeypatch):
    model, ended = Doubler(), []

    def start(_):
        raise RuntimeError("can't start new thread")

    async def run():
        batcher = batcher_of(model, 64, 0)
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", start)
            submit(batcher, zeros(), ended, "refused")
            await settle(batcher)
        submit(batcher, zeros(), ended, "answered")
        await settle(batcher)
        batcher.close()

    asyncio.run(run())
    assert names(ended) == ["refused", "answered"]
    assert isinstance(ended[0].error, OverloadedError)
    assert "cannot start a thread: can't start new thread" in str(ended[0].error)
    assert ended[1].error is None
    assert [rows for rows, _ in model.runs] == [1]


def test_requests_that_come_one_by_one_run_as_they_come():
    model, ended, known = Doubler(), [], []

    async def run():
        batcher = batcher_of(model, 64, 10**12, short=(1,))
        for number in range(6):
            submit(batcher, zeros(), ended, number)
            known.append(number in names(ended))
            await settle(batcher)
            await asyncio.sleep(0)

    asyncio.run(run())
    assert names(ended) == list(range(6))
    assert known[0] is False
    assert any(known)


def test_priority_goes_first_and_none_comes_last():
    model, ended = Doubler(), []

    async def run():
        batcher = batcher_of(model, 1, 10**12)
        for name, priority in [("none", 0), ("low", 9), ("high", 1), ("high, later", 1)]:
            submit(batcher, zeros(), ended, name, priority=priority)
        await settle(batcher)
        batcher.close()

    asyncio.run(run())
    assert names(ended) == ["high", "high, later", "low", "none"]


def test_a_late_request_is_dropped_before_it_is_run():
    model, ended = Doubler(), []

    async def run():
        batcher = batcher_of(model, 8, 10**12)
        submit(batcher, zeros(), ended, "late", timeout_us=1)
        await settle(batcher)

    asyncio.run(run())
    assert model.runs == []
    assert isinstance(ended[0].error, DeadlineExceededError)


def test_a_deadline_passes_while_another_request_runs():
    gate = threading.Event()
    ended = []

    class Slow(Doubler):
        def run(self, feeds, output_names, options=None):
            assert gate.wait(60)
            return super().run(feeds, output_names)

    async def run():
        batcher = batcher_of(Slow(), 8, 0)
        submit(batcher, zeros(), ended, "runs")
        await asyncio.sleep(0)
        completion = Recorded(ended, "late")
        timings = Timings(time.perf_counter_ns())
        batcher.submit(InferenceRequest({"x": zeros()}, ("y",), 1, "k", 0, 1000), completion, timings)
        async with asyncio.timeout(60):
            while not ended:
                await asyncio.sleep(0.001)
        gate.set()
        await settle(batcher)
        batcher.close()

    asyncio.run(run())
    assert names(ended) == ["late", "runs"]
    assert isinstance(ended[0].error, DeadlineExceededError)


def test_a_model_without_batch_dimension_runs_one_request_at_a_time():
    model, ended = Unbatched(), []

    async def run():
        batcher = batcher_of(model, 8, 10**12)
        for _ in range(3):
            batcher.submit(InferenceRequest({"x": np.ones((4, 2))}, ("y",), 1, None), Recorded(ended), Timings())
        await settle(batcher)
        batcher.close()

    asyncio.run(run())
    assert [rows for rows, _ in model.runs] == [4, 4, 4]
    assert all(completion.result.array(0).shape == (4, 2) for completion in ended)


def test_a_closed_batcher_finishes_its_queue_and_accepts_no_more():
    model, ended = Doubler(), []

    async def run():
        batcher = batcher_of(model, 8, 0)
        before = submit(batcher, zeros(), ended, "before")
        batcher.close()
        after = submit(batcher, zeros(), ended, "after")
        await settle(batcher)
        return before, after

    before, after = asyncio.run(run())
    assert before.error is None
    assert isinstance(after.error, ModelUnavailableError)


def test_awaiting_a_run_gives_its_result_or_raises_its_error():
    async def run():
        batcher = batcher_of(Doubler(), 8, 10**12)
        good = InferenceRequest({"x": np.full((2, 2), 3, np.float32)}, ("y",), 2, "k")
        bad = InferenceRequest({"x": np.full((1, 2), 666, np.float32)}, ("y",), 1, "k")
        found = await asyncio.gather(batcher.run(good), batcher.run(bad), return_exceptions=True)
        batcher.close()
        with pytest.raises(ModelUnavailableError, match="is being unloaded"):
            await batcher.run(good)
        return found

    result, error = asyncio.run(run())
    np.testing.assert_array_equal(result.array(0), np.full((2, 2), 6))
    assert isinstance(error, InferenceFailedError)


def test_cancelling_the_waiting_task_cancels_the_request():
    model = Doubler()

    async def run():
        batcher = batcher_of(model, 8, 10**12, delay_ns=10**12)
        task = asyncio.create_task(batcher.run(InferenceRequest({"x": zeros()}, ("y",), 1, "k")))
        await asyncio.sleep(0)
        assert batcher.depth == 1
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        assert batcher.depth == 0
        await settle(batcher)

    asyncio.run(run())
    assert model.runs == []


@pytest.mark.parametrize("inline_ns", [0, 10**12])
def test_the_queue_between_two_runs_is_run_after_the_batcher_was_closed(inline_ns):
    """A version that is replaced at that moment ends its thread only once nothing is queued."""
    model, ended = Doubler(), []

    async def run():
        batcher = batcher_of(model, 1, 0)  # the first on the model's thread

        class Closing(Recorded):
            def completed(self, result):
                super().completed(result)
                batcher.options = replace(batcher.options, inline_ns=inline_ns)
                batcher.close()

        batcher.submit(InferenceRequest({"x": zeros()}, ("y",), 1, (("y",), (2,))), Closing(ended, "first"), Timings())
        for name in ("second", "third"):
            submit(batcher, zeros(), ended, name)
        await settle(batcher)
        return batcher._thread

    thread = asyncio.run(run())
    assert [(completion.name, completion.error) for completion in ended] == [
        ("first", None),
        ("second", None),
        ("third", None),
    ]
    with pytest.raises(RuntimeError, match="after shutdown"):
        thread.submit(print)
