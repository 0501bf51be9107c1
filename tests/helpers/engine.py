"""Requests for a batcher, a model for it to run, and a recorder of the outcomes."""

import asyncio

import numpy as np

from app.engine.batcher import Batcher
from app.engine.batching_options import BatchingOptions
from app.engine.request import InferenceRequest, Timings
from app.errors import InferenceFailedError
from app.runtime.runner import RunResult
from app.runtime.tensors import TensorSpec
from helpers.batching import BATCHED


class Recorded:
    """A completion that records its end, in a list shared by several."""

    def __init__(self, ended, name=None):
        self.ended = ended
        self.name = name
        self.result = self.error = None
        self.timings = Timings()

    def completed(self, result):
        self.result = result
        self.ended.append(self)

    def failed(self, error):
        self.error = error
        self.ended.append(self)


def submit(batcher, x, ended, name=None, outputs=("y",), **options):
    """Submit rows; returns the completion, which is in ``ended`` once it has ended."""
    completion = Recorded(ended, name)
    request = InferenceRequest({"x": x}, outputs, len(x), (outputs, x.shape[1:]), **options)
    batcher.submit(request, completion, completion.timings)
    return completion


def batcher_of(model, max_rows, inline_ns, *, short=(), **options):
    """A batcher; runs of the sizes in ``short`` have a known duration of a nanosecond."""
    batcher = Batcher(model, BatchingOptions(max_rows, inline_ns, **options))
    for rows in short:
        batcher.cost.set(rows, 1)
    return batcher


async def settle(batcher):
    """Wait until no work is left."""
    async with asyncio.timeout(60):
        while not batcher.idle:
            await asyncio.sleep(0)


class Doubler:
    """A model that doubles its input, records its runs, and fails on the number 666."""

    optional_inputs = ()
    name = "doubler"
    batched, batching = True, BATCHED
    gathers = False
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
        return RunResult([x * 2 if name == "y" else x * 3 for name in output_names])


def zeros(rows=1):
    return np.zeros((rows, 2), np.float32)


def names(ended):
    return [completion.name for completion in ended]
