"""Runners that gather requests themselves, and answers that are given while the device runs the next batch."""

import asyncio

import numpy as np
from helpers.engine import Doubler, Recorded, batcher_of, names, settle, submit, zeros

from app.engine.request import InferenceRequest, Timings
from app.runtime.runner import RunResult


class Gatherer(Doubler):
    """One that takes the rows of several requests as they are, and copies them to a device and back."""

    gathers = True

    def run(self, feeds, output_names, options=None, meanwhile=None):
        parts = feeds["x"]
        self.runs.append([len(part) for part in parts] if isinstance(parts, list) else len(parts))
        return RunResult([2 * (np.concatenate(parts) if isinstance(parts, list) else parts)], 300, 50)


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
        return super().run(feeds, output_names)


class Told(Recorded):
    """One that notes in the device's record when it is completed."""

    def completed(self, result):
        np.testing.assert_array_equal(result.array(0), np.full((4, 2), 2 * self.name))
        super().completed(result)
        self.told.append(self.name)


def test_a_batch_is_answered_while_the_next_one_runs_on_a_device():
    told, ended = [], []
    batcher = batcher_of(Device(told), 8, 10**12, short=(1,))

    async def run():
        completions = []
        for number in range(8):
            completion = Told(ended, number)
            completion.told = told
            completions.append(completion)
            request = InferenceRequest({"x": np.full((4, 2), number, np.float32)}, ("y",), 4, "k")
            batcher.submit(request, completion, Timings())
        batcher.cancel(completions[3])
        await settle(batcher)

    asyncio.run(run())
    assert told == ["runs", "ran", "runs", 0, 1, "ran", "runs", 2, 4, "ran", "runs", 5, 6, "ran", 7]
    assert len(ended) == 7
    assert batcher.idle


def test_deferred_answers_are_given_although_nothing_more_runs():
    told, ended = [], []
    batcher = batcher_of(Device(told), 8, 10**12, short=(1,))

    async def run():
        submit(batcher, zeros(8), ended, 0)
        gone = submit(batcher, zeros(8), ended, 1)
        batcher._turn()
        assert (ended, batcher.idle) == ([], False)
        batcher.cancel(gone)
        assert not batcher.idle
        await settle(batcher)

    asyncio.run(run())
    assert names(ended) == [0]


def test_a_deferred_answer_is_dropped_when_its_client_leaves():
    ended = []
    batcher = batcher_of(Device([]), 8, 10**12, short=(1,))

    async def run():
        gone = submit(batcher, zeros(8), ended, 0)
        submit(batcher, zeros(8), ended, 1)
        batcher._turn()
        batcher.cancel(gone)
        await settle(batcher)

    asyncio.run(run())
    assert names(ended) == [1]


def test_a_runner_that_gathers_gets_the_requests_apart_and_copies_are_not_time_of_the_model():
    model, ended = Gatherer(), []

    async def run():
        batcher = batcher_of(model, 8, 10**12, short=(1,))
        for number in range(3):
            submit(batcher, np.full((number + 1, 2), number, np.float32), ended, number)
        await settle(batcher)
        submit(batcher, zeros(2), ended, 3)
        await settle(batcher)
        return batcher.statistics

    statistics = asyncio.run(run())
    assert model.runs == [[1, 2, 3], 2]
    for number, completion in enumerate(ended[:3]):
        np.testing.assert_array_equal(completion.result.array(0), np.full((number + 1, 2), 2 * number))
    assert {completion.timings.output_ns for completion in ended} == {50}
    assert all(completion.timings.input_ns >= 300 for completion in ended)
    runs, input_ns, infer_ns, output_ns = statistics.batches[6]
    assert (runs, output_ns) == (1, 50)
    assert input_ns >= 300
    assert infer_ns == ended[0].timings.infer_ns
