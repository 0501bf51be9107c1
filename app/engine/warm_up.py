"""Warm up a model: a few timed runs of several sizes, so that the first requests are not slow."""

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
        model: Makes the inputs.
        instance: The model or the instance to run.
        max_rows: Rows of the largest batch.
        cost: Records the durations of the runs.
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
