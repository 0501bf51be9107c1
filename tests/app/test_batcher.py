import asyncio
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.batcher import Batcher
from app.calls import Call
from app.codec.prepared import prepare
from app.errors import DeadlineExceededError, InferenceFailedError, InvalidRequestError, ModelUnavailableError
from app.tensors import TensorSpec


class Doubler:
    """A model that doubles its input, notes what it ran, and fails on the number 666."""

    name = "doubler"
    batched = True
    gathers = False
    copy_ns = 0, 0
    aside_ns = 0
    output_names = ("y",)

    def __init__(self):
        spec = TensorSpec("y", "FP32", np.dtype(np.float32), (None, None), ("batch", None))
        self.output_by_name = {"y": spec, "z": spec}
        self.labelled = None
        self.runs = []

    def run(self, feeds, output_names, options=None):
        x = feeds["x"]
        self.runs.append((len(x), output_names))
        if (x == 666).any():
            raise InferenceFailedError("the model failed on this input")
        return [x * 2 if name == "y" else x * 3 for name in output_names]


class Unbatched(Doubler):
    batched = False


def call(x, results, name=None, outputs=("y",), **options):
    key = (outputs, x.shape[1:])
    return Call({"x": x}, outputs, len(x), key, lambda *ended: results.append((name, *ended)), **options)


async def settle(batcher):
    while not batcher.idle:
        await asyncio.sleep(0)


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
        batcher = Batcher(model, max_rows, inline_ns)
        if inline_ns:
            batcher._cost_ns[0] = 1
        results, sent = [], {}
        for number, (rows, width, outputs, kind, pause, priority) in enumerate(arrived):
            x = np.full((rows, width), number, np.float32) + np.arange(rows, dtype=np.float32)[:, None] / 16
            if kind == "poisoned":
                x[-1, 0] = 666
            item = call(x, results, number, outputs, priority=priority)
            sent[number] = (x, outputs, kind)
            batcher.submit(item)
            if kind == "cancelled" and number not in [name for name, *_ in results]:  # else it was run as it came
                sent[number] = (x, outputs, "gone")
                batcher.cancel(item)
            for _ in range(pause):
                await asyncio.sleep(0)
        await settle(batcher)
        batcher.close()
        return results, sent

    results, sent = asyncio.run(run())
    expected = [number for number, (_, _, kind) in sent.items() if kind != "gone"]
    assert Counter(name for name, *_ in results) == Counter(expected)
    for number, item, outcome, error in results:
        x, outputs, kind = sent[number]
        if kind == "poisoned":
            assert isinstance(error, InferenceFailedError)
            continue
        assert error is None
        for index, name in enumerate(outputs):
            np.testing.assert_array_equal(outcome.array(index, item.start, item.stop), x * (2 if name == "y" else 3))
    assert all(rows <= max_rows for rows, _ in model.runs)


@pytest.mark.parametrize("inline_ns", [0, 10**12])
def test_a_defect_of_ours_leaves_nobody_waiting(inline_ns, caplog):
    """Neither one in what is counted for a run, nor one in how another caller is answered."""
    results = []

    async def run(model, first):
        batcher = Batcher(model, 8, inline_ns)
        batcher._cost_ns[0] = 1
        batcher.submit(first)
        batcher.submit(call(np.zeros((1, 2), np.float32), results, "second"))
        await asyncio.wait_for(settle(batcher), 10)
        batcher.close()

    class Forgetful(Doubler):
        copy_ns = None

    asyncio.run(run(Forgetful(), call(np.zeros((1, 2), np.float32), results, "first")))
    assert [(name, str(error)) for name, _, _, error in results] == [
        ("first", "model 'doubler' failed"),
        ("second", "model 'doubler' failed"),
    ]
    results.clear()
    broken = call(np.zeros((1, 2), np.float32), results)
    broken.done = lambda *_: 1 / 0
    asyncio.run(run(Doubler(), broken))
    assert [(name, error) for name, _, _, error in results] == [("second", None)]
    assert "could not be answered" in caplog.text


def test_inputs_in_another_order_are_of_another_shape_all_the_same():
    named = [TensorSpec(name, "FP32", np.dtype(np.float32), (None, None), ("batch", None)) for name in "ab"]
    model = SimpleNamespace(inputs=named, batched=True, takes_empty=True, fixed_rows=False)

    def key(**feeds):
        return prepare(model, {name: np.zeros((1, width)) for name, width in feeds.items()}, ("y",)).key

    assert key(a=2, b=3) == key(b=3, a=2)
    assert key(a=2, b=3) != key(b=2, a=3)
    with pytest.raises(InvalidRequestError, match="input 'b' has 2 rows and input 'a' has 1"):
        prepare(model, {"b": np.zeros((2, 1)), "a": np.zeros((1, 1))}, ("y",))


def test_what_arrives_in_one_turn_runs_together():
    model, results = Doubler(), []

    async def run():
        batcher = Batcher(model, 64, 10**12)
        batcher._cost_ns[0] = 1
        for number in range(10):
            batcher.submit(call(np.full((1, 2), number, np.float32), results, number))
        await settle(batcher)
        return batcher

    batcher = asyncio.run(run())
    assert [rows for rows, _ in model.runs] == [10]
    assert [name for name, *_ in results] == list(range(10))
    assert (batcher.statistics.executions, batcher.statistics.executed_rows) == (1, 10)


def test_what_arrives_while_a_batch_runs_is_the_next_batch():
    model, results = Doubler(), []

    async def run():
        batcher = Batcher(model, 64, 0)  # everything on the owner thread
        batcher.submit(call(np.zeros((1, 2), np.float32), results))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        for _ in range(5):
            batcher.submit(call(np.zeros((1, 2), np.float32), results))
        await settle(batcher)
        batcher.close()

    asyncio.run(run())
    assert [rows for rows, _ in model.runs] == [1, 5]


def test_priority_goes_first_and_none_comes_last():
    model, results = Doubler(), []

    async def run():
        batcher = Batcher(model, 1, 10**12)
        for name, priority in [("none", 0), ("low", 9), ("high", 1), ("high, later", 1)]:
            batcher.submit(call(np.zeros((1, 2), np.float32), results, name, priority=priority))
        await settle(batcher)
        batcher.close()

    asyncio.run(run())
    assert [name for name, *_ in results] == ["high", "high, later", "low", "none"]


def test_an_expired_call_is_dropped_before_it_is_run():
    model, results = Doubler(), []

    async def run():
        batcher = Batcher(model, 8, 10**12)
        batcher.submit(call(np.zeros((1, 2), np.float32), results, "late", deadline_ns=1))
        await asyncio.sleep(0.01)
        await settle(batcher)

    asyncio.run(run())
    assert model.runs == []
    assert isinstance(results[0][3], DeadlineExceededError)


def test_a_model_without_batch_dimension_runs_one_call_at_a_time():
    model, results = Unbatched(), []

    async def run():
        batcher = Batcher(model, 8, 10**12)
        for _ in range(3):
            batcher.submit(Call({"x": np.ones((4, 2))}, ("y",), 1, None, lambda *ended: results.append(ended)))
        await settle(batcher)
        batcher.close()

    asyncio.run(run())
    assert [rows for rows, _ in model.runs] == [4, 4, 4]
    assert all(outcome.array(0, 0, 1).shape == (4, 2) for _, outcome, _ in results)


def test_a_closed_batcher_finishes_what_waits_and_takes_no_more():
    model, results = Doubler(), []

    async def run():
        batcher = Batcher(model, 8, 0)
        batcher.submit(call(np.zeros((1, 2), np.float32), results, "before"))
        batcher.close()
        batcher.submit(call(np.zeros((1, 2), np.float32), results, "after"))
        await settle(batcher)

    asyncio.run(run())
    errors = {name: error for name, _, _, error in results}
    assert errors["before"] is None
    assert isinstance(errors["after"], ModelUnavailableError)


@pytest.mark.parametrize(("rows", "expected"), [(1, 100), (2, 200), (4, 400), (3, 400), (9, 1600)])
def test_a_size_never_seen_is_expected_to_cost_in_proportion(rows, expected):
    batcher = Batcher(Doubler(), 64, 0)
    batcher._learn(1, 100)
    assert batcher._expected_ns(rows) == expected


class Gatherer(Doubler):
    """One that takes the rows of several requests as they are, and copies them to a device and back."""

    gathers = True

    def run(self, feeds, output_names, options=None):
        parts = feeds["x"]
        self.runs.append([len(part) for part in parts] if isinstance(parts, list) else len(parts))
        self.copy_ns = 300, 50
        return [2 * (np.concatenate(parts) if isinstance(parts, list) else parts)]


class Device(Gatherer):
    """One whose runs leave time for something else."""

    def __init__(self, told):
        super().__init__()
        self.told = told

    def run(self, feeds, output_names, options=None, meanwhile=None):
        self.told.append("runs")
        if meanwhile is not None:
            meanwhile()
        self.told.append("ran")
        self.aside_ns = 0
        return super().run(feeds, output_names)


def test_a_batch_is_answered_while_the_next_one_runs_on_a_device():
    told = []
    batcher = Batcher(Device(told), 8, 10**12)
    batcher._cost_ns[0] = 1

    async def run():
        calls = [Call({"x": np.full((4, 2), number, np.float32)}, ("y",), 4, "k", done(number)) for number in range(8)]
        for item in calls:
            batcher.submit(item)
        batcher.cancel(calls[3])
        await settle(batcher)

    def done(number):
        def note(call, results, error):
            assert error is None
            np.testing.assert_array_equal(results.array(0, call.start, call.stop), np.full((4, 2), 2 * number))
            told.append(number)

        return note

    asyncio.run(run())
    assert told == ["runs", "ran", "runs", 0, 1, "ran", "runs", 2, 4, "ran", "runs", 5, 6, "ran", 7]
    assert batcher.idle


def test_what_was_left_is_answered_although_nothing_more_runs():
    told, results = [], []
    batcher = Batcher(Device(told), 8, 10**12)
    batcher._cost_ns[0] = 1

    async def run():
        batcher.submit(call(np.zeros((8, 2), np.float32), results, 0))
        gone = call(np.zeros((8, 2), np.float32), results, 1)
        batcher.submit(gone)
        batcher._turn()
        assert (results, batcher.idle) == ([], False)
        batcher.cancel(gone)
        assert not batcher.idle
        await settle(batcher)

    asyncio.run(run())
    assert [name for name, *_ in results] == [0]


def test_a_model_that_gathers_gets_the_requests_apart_and_its_copies_are_no_time_of_the_model():
    model, results = Gatherer(), []

    async def run():
        batcher = Batcher(model, 8, 10**12)
        batcher._cost_ns[0] = 1
        for number in range(3):
            batcher.submit(call(np.full((number + 1, 2), number, np.float32), results, number))
        await settle(batcher)
        batcher.submit(call(np.zeros((2, 2), np.float32), results, 3))
        await settle(batcher)
        return batcher.statistics

    statistics = asyncio.run(run())
    assert model.runs == [[1, 2, 3], 2]
    for number, item, outcome, _ in results[:3]:
        np.testing.assert_array_equal(outcome.array(0, item.start, item.stop), np.full((number + 1, 2), 2 * number))
    assert {item.output_ns for _, item, _, _ in results} == {50}
    assert all(item.input_ns >= 300 for _, item, _, _ in results)
    runs, input_ns, infer_ns, output_ns = statistics.batches[6]
    assert (runs, output_ns) == (1, 50)
    assert input_ns >= 300
    assert infer_ns == results[0][1].infer_ns


@pytest.mark.parametrize("inline_ns", [0, 10**12])
def test_what_waits_between_two_runs_is_run_after_the_batcher_was_closed(inline_ns):
    """A version that is replaced at that moment ends its thread only once nothing waits."""
    model, results = Doubler(), []

    async def run():
        batcher = Batcher(model, 1, 0)  # the first on the owner thread
        x = np.zeros((1, 2), np.float32)

        def close(*ended):
            results.append(("first", *ended))
            batcher.inline_ns = inline_ns
            batcher.close()

        batcher.submit(Call({"x": x}, ("y",), 1, ("y", (2,)), close))
        for name in ("second", "third"):
            batcher.submit(call(x, results, name))
        await asyncio.wait_for(settle(batcher), 10)
        return batcher._thread

    thread = asyncio.run(run())
    assert [(name, error) for name, _, _, error in results] == [("first", None), ("second", None), ("third", None)]
    with pytest.raises(RuntimeError, match="after shutdown"):
        thread.submit(print)
