"""Batches of large tensors: on a thread however short their runs are, and the next one before the answers."""

import asyncio
import threading

import numpy as np
from helpers.engine import Doubler, Recorded, batcher_of, names, settle, submit, zeros

from app.engine.request import InferenceRequest

ROW = 1 << 18  # floats of a mebibyte


class Noting(Doubler):
    """One that notes its runs in a record that it shares, and the thread of each."""

    def __init__(self, told):
        super().__init__()
        self.told = told
        self.threads = []
        self.began = threading.Event()

    def run(self, feeds, output_names, options=None):
        self.told.append(("runs", len(feeds["x"])))
        self.threads.append(threading.current_thread())
        if len(self.told) > 1:
            self.began.set()
        return super().run(feeds, output_names, options)


class Waiting(Recorded):
    """One that waits for the next run to begin."""

    def __init__(self, ended, name, model):
        super().__init__(ended, name)
        self.model = model

    def completed(self, result):
        assert self.model.began.wait(60)
        super().completed(result)
        self.model.told.append(self.name)


def test_a_large_batch_runs_on_the_thread_and_a_small_one_on_the_loop():
    model, ended = Noting([]), []

    async def run():
        batcher = batcher_of(model, 8, 10**12, short=(1, 2))
        for rows, width in ((1, 2), (1, ROW), (2, 2)):
            submit(batcher, np.zeros((rows, width), np.float32), ended, (rows, width))
            await settle(batcher)
            submit(batcher, np.zeros((rows, width), np.float32), ended, (rows, width))
            await settle(batcher)
        batcher.close()

    asyncio.run(run())
    main = threading.current_thread()
    assert [thread is main for thread in model.threads] == [True, True, False, False, True, True]
    assert len(ended) == 6


def test_the_next_large_batch_begins_before_the_answers_are_written():
    told, ended = [], []
    model = Noting(told)

    async def run():
        batcher = batcher_of(model, 1, 10**12, short=(1,))
        for number in range(2):
            completion = Waiting(ended, number, model)
            submit_to(batcher, completion, np.zeros((1, ROW), np.float32))
        await settle(batcher)
        submit(batcher, zeros(), ended, "small")
        await settle(batcher)
        batcher.close()

    asyncio.run(run())
    assert told[:3] == [("runs", 1), ("runs", 1), 0]
    assert names(ended) == [0, 1, "small"]


def submit_to(batcher, completion, x):
    batcher.submit(InferenceRequest({"x": x}, ("y",), 1, "k"), completion, completion.timings)
