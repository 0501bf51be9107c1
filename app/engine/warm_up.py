"""Warm up a model: a few runs of several sizes, timed, so that the first requests meet no cold path."""

import time

from app.engine.cost_model import CostModel
from app.errors import InferenceFailedError
from app.runtime.instance import ModelInstance
from app.runtime.model import OnnxModel

_LONG_NS = 500_000_000
_ROWS = (1, 8, 64)


def warm_up(model: OnnxModel, instance: OnnxModel | ModelInstance, max_rows: int, cost: CostModel) -> None:
    """Run a model at a few sizes up to its largest batch.

    Args:
        model: makes the inputs.
        instance: what runs: the model, or one of its instances.
        max_rows: of the largest batch.
        cost: learns how long the runs take.
    """
    for rows in dict.fromkeys((*_ROWS, max_rows)) if model.batched else (1,):
        if rows > max_rows:
            continue
        feeds = model.random_feeds(rows)
        try:
            for _ in range(2):
                began_ns = time.perf_counter_ns()
                instance.run(feeds, model.output_names)
                ended_ns = time.perf_counter_ns()
        except InferenceFailedError:
            return  # not every model accepts random input
        cost.set(rows, ended_ns - began_ns)
        if ended_ns - began_ns > _LONG_NS:
            return
