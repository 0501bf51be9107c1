"""Runs batches of inference requests: concatenated, in pieces, and one by one after a failure."""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import onnxruntime as ort

from app.engine.queue import QueueEntry
from app.engine.request import Timings
from app.engine.results import BatchResult, InferenceResult
from app.errors import AppError, InferenceFailedError, OverloadedError
from app.runtime.batching import Batching, rows_between
from app.runtime.instance import ModelInstance
from app.runtime.model import OnnxModel
from app.runtime.runner import Meanwhile, Parts, RunResult
from app.runtime.tensors import Array

log = logging.getLogger(__name__)

Outcome = InferenceResult | AppError


RunRecord = tuple[int, int, Timings]
"""A successful run: rows, time including copies, and the timings of its first request, shared by all requests."""


@dataclass(slots=True)
class BatchOutcome:
    """Outcome of a batch.

    Attributes:
        outcomes: The result or the error of each request, in the order of the batch.
        runs: The successful runs; more than one if the requests ran one by one.
        mismatched: Whether an output had a different number of rows than the input, which ends batching of the model.
    """

    outcomes: list[Outcome]
    runs: list[RunRecord]
    mismatched: bool = False


class BatchRunner:
    """Runs batches of one model, on any thread; it keeps no state between batches.

    Args:
        model: The model to run.
        max_rows: Maximum number of rows in one run; a larger request runs in pieces.
        instance: Instance of the model that runs the batches; None for the first one.

    Attributes:
        instance: The instance that runs the batches.
    """

    def __init__(self, model: OnnxModel, max_rows: int, instance: ModelInstance | None = None) -> None:
        self._model = model
        self._max_rows = max_rows
        self.instance: OnnxModel | ModelInstance = instance or model

    def run(
        self, batch: list[QueueEntry], options: ort.RunOptions | None = None, meanwhile: Meanwhile | None = None
    ) -> BatchOutcome:
        """Run a batch. It never raises an exception.

        Args:
            batch: Requests with the same key.
            options: Run options; setting ``terminate`` stops the run.
            meanwhile: Work for the host while a device is busy; may remain uncalled.
        """
        began_ns = time.perf_counter_ns()
        try:
            return self._run_together(batch, began_ns, options, meanwhile)
        except (InferenceFailedError, MemoryError) as error:
            if len(batch) > 1 and not (options is not None and options.terminate):
                return self._run_one_by_one(batch, options)
            failure = self._failure(error)
        except Exception as error:  # a defect of the server must not leave clients waiting forever
            log.exception("running a batch of model %s failed", self._model.name)
            failure = self._failure(error)
        for entry in batch:
            entry.timings.queue_ns = began_ns - entry.timings.queued_ns
        return BatchOutcome([failure] * len(batch), [])

    def _run_together(
        self,
        batch: list[QueueEntry],
        began_ns: int,
        options: ort.RunOptions | None,
        meanwhile: Meanwhile | None,
    ) -> BatchOutcome:
        model, first, several = self._model, batch[0].request, len(batch) > 1
        batching, names = model.batching, first.output_names
        feeds: Mapping[str, Parts] = self._concatenated(batch, batching) if several else first.feeds
        rows = sum([entry.request.rows for entry in batch]) if several else first.rows
        ready_ns = time.perf_counter_ns() if several else began_ns
        if rows > self._max_rows and batching.batched:
            run = self._run_in_pieces(feeds, names, rows, options)
        elif meanwhile is None:
            run = self.instance.run(feeds, names, options)
        else:
            run = self.instance.run(feeds, names, options, meanwhile)
        run_ns = time.perf_counter_ns() - ready_ns - run.meanwhile_ns
        mismatched = False
        axes = batching.cut(names) if batching.batched else None
        if axes is not None:
            reason = _row_mismatch(names, run.arrays, axes, rows)
            if reason is not None:
                model.stop_batching(reason)
                mismatched = True
        if several and mismatched:
            return replace(self._run_one_by_one(batch, options), mismatched=True)
        # A single request is never cut.
        whole = BatchResult(model, names, run.arrays, axes if several else None)
        # Copies to and from a device do not count as model time.
        input_ns, output_ns = ready_ns - began_ns + run.input_ns, run.output_ns
        infer_ns = run_ns - run.input_ns - output_ns
        outcomes: list[Outcome] = []
        start = 0
        for entry in batch:
            timings = entry.timings
            timings.queue_ns = began_ns - timings.queued_ns
            timings.input_ns = input_ns
            timings.infer_ns = infer_ns
            timings.output_ns = output_ns
            stop = start + entry.request.rows
            outcomes.append(InferenceResult(whole, start, stop))
            start = stop
        return BatchOutcome(outcomes, [(rows, run_ns, batch[0].timings)], mismatched)

    def _run_one_by_one(self, batch: list[QueueEntry], options: ort.RunOptions | None) -> BatchOutcome:
        """Isolate the request that made the batch fail by running each one separately."""
        found = [self.run([entry], options) for entry in batch]
        return BatchOutcome(
            [outcome for each in found for outcome in each.outcomes], [run for each in found for run in each.runs]
        )

    def _failure(self, error: Exception) -> AppError:
        """The error for clients, without the frames of the run, which refer to the tensors of the batch."""
        if isinstance(error, InferenceFailedError):
            return InferenceFailedError(*error.args)
        if isinstance(error, MemoryError):
            return OverloadedError(f"model {self._model.name!r} has not enough memory for this request")
        return InferenceFailedError(f"model {self._model.name!r} failed")

    def _concatenated(self, batch: list[QueueEntry], batching: Batching) -> Mapping[str, Parts]:
        """The concatenated rows of several requests, or a list of tensors if the model's runner gathers them."""
        first = batch[0].request.feeds
        if self.instance.gathers:
            return {name: [entry.request.feeds[name] for entry in batch] for name in first}
        if batching.rows_first:
            return {name: np.concatenate([entry.request.feeds[name] for entry in batch]) for name in first}
        axes = batching.input_axes
        # Requests with the same key have equal values for inputs that all rows share.
        joined = {}
        for name, array in first.items():
            axis = axes[name]
            parts = [entry.request.feeds[name] for entry in batch]
            joined[name] = array if axis is None else np.concatenate(parts, axis)
        return joined

    def _run_in_pieces(
        self, feeds: Mapping[str, Parts], output_names: tuple[str, ...], rows: int, options: ort.RunOptions | None
    ) -> RunResult:
        """Run more rows than the maximum of a run."""
        batching = self._model.batching
        axes = batching.cut(output_names)
        optional = {spec.name for spec in self._model.optional_inputs}  # one value for all rows
        runs, sizes = [], []
        for at in range(0, rows, self._max_rows):
            until = min(rows, at + self._max_rows)
            piece = {
                name: rows_between(
                    cast("Array", array), None if name in optional else batching.input_axes[name], at, until
                )
                for name, array in feeds.items()
            }
            runs.append(self.instance.run(piece, output_names, options))
            sizes.append(until - at)
        if any(
            _row_mismatch(output_names, run.arrays, axes, size) for run, size in zip(runs, sizes, strict=True)
        ) or not all(map(_joinable, zip(*[run.arrays for run in runs], strict=True), axes)):
            # The shape of an output depends on the data: only a run of all rows determines it.
            return self.instance.run(feeds, output_names, options)
        outputs = zip(zip(*[run.arrays for run in runs], strict=True), axes, strict=True)
        return RunResult(
            [parts[0] if axis is None else np.concatenate(parts, axis) for parts, axis in outputs],
            sum(run.input_ns for run in runs),
            sum(run.output_ns for run in runs),
        )


def _row_mismatch(names: Sequence[str], arrays: Sequence[Array], axes: Sequence[int | None], rows: int) -> str | None:
    """Which output has a different number of rows than the input, or None."""
    for index, axis in enumerate(axes):
        if axis is not None:
            shape = arrays[index].shape
            if len(shape) <= axis or shape[axis] != rows:
                return f"a run of {rows} rows gave output {names[index]!r} of shape {list(shape)}"
    return None


def _joinable(parts: Sequence[Array], axis: int | None) -> bool:
    """Whether outputs of several runs have the same shape apart from the rows."""
    shapes = {part.shape if axis is None else part.shape[:axis] + part.shape[axis + 1 :] for part in parts}
    return len(shapes) == 1
