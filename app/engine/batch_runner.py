"""Runs batches of inference requests: concatenated, in pieces, and one by one where one of them fails."""

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
"""A run that succeeded: rows, time with its copies, and the timings of its first request, which all of it share."""


@dataclass(slots=True)
class BatchOutcome:
    """Outcome of a batch.

    Attributes:
        outcomes: the result or the error of each request, in the order of the batch.
        runs: those that succeeded; more than one where the requests ran one by one.
        mismatched: whether an output did not have the rows that went in, so that the model is not batched any more.
    """

    outcomes: list[Outcome]
    runs: list[RunRecord]
    mismatched: bool = False


class BatchRunner:
    """Runs batches of one model, on any thread; it keeps nothing between two batches.

    Args:
        model: the model to run.
        max_rows: most rows in one run; a request with more is run in pieces.
        instance: which of the model's runs them; None for its first.

    Attributes:
        instance: what runs the batches.
    """

    def __init__(self, model: OnnxModel, max_rows: int, instance: ModelInstance | None = None) -> None:
        self._model = model
        self._max_rows = max_rows
        self.instance: OnnxModel | ModelInstance = instance or model

    def run(
        self, batch: list[QueueEntry], options: ort.RunOptions | None = None, meanwhile: Meanwhile | None = None
    ) -> BatchOutcome:
        """Run a batch; no exception leaves it.

        Args:
            batch: requests of the same key.
            options: of the run; setting its ``terminate`` stops it.
            meanwhile: work for the host while a device is busy; it may be called or not.
        """
        began_ns = time.perf_counter_ns()
        try:
            return self._run_together(batch, began_ns, options, meanwhile)
        except (InferenceFailedError, MemoryError) as error:
            if len(batch) > 1 and not (options is not None and options.terminate):
                return self._run_one_by_one(batch, options)
            failure = self._failure(error)
        except Exception as error:  # a defect of the server must not leave clients waiting forever
            log.exception("a batch of model %s failed", self._model.name)
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
        ready_ns = time.perf_counter_ns()
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
        # A request alone is never cut.
        whole = BatchResult(model, names, run.arrays, axes if several else None)
        # Copies to and from a device are not time of the model.
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
        """Isolate the request that made the batch fail: each runs by itself, so that it fails alone."""
        found = [self.run([entry], options) for entry in batch]
        return BatchOutcome(
            [outcome for each in found for outcome in each.outcomes], [run for each in found for run in each.runs]
        )

    def _failure(self, error: Exception) -> AppError:
        """The error that clients are told, without the frames of the run: they refer to the tensors of the batch."""
        if isinstance(error, InferenceFailedError):
            return InferenceFailedError(*error.args)
        if isinstance(error, MemoryError):
            return OverloadedError(f"model {self._model.name!r} has no memory for this request now")
        return InferenceFailedError(f"model {self._model.name!r} failed")

    def _concatenated(self, batch: list[QueueEntry], batching: Batching) -> Mapping[str, Parts]:
        """The rows of several requests, or the tensors one by one where the model's runner gathers them."""
        first = batch[0].request.feeds
        if self.instance.gathers:
            return {name: [entry.request.feeds[name] for entry in batch] for name in first}
        if batching.rows_first:
            return {name: np.concatenate([entry.request.feeds[name] for entry in batch]) for name in first}
        axes = batching.input_axes
        # Requests of one key give the inputs that all rows share alike.
        joined = {}
        for name, array in first.items():
            axis = axes[name]
            parts = [entry.request.feeds[name] for entry in batch]
            joined[name] = array if axis is None else np.concatenate(parts, axis)
        return joined

    def _run_in_pieces(
        self, feeds: Mapping[str, Parts], output_names: tuple[str, ...], rows: int, options: ort.RunOptions | None
    ) -> RunResult:
        """Run more rows than a run may have."""
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
            # The shape of an output depends on what is in the rows: only all together have one.
            return self.instance.run(feeds, output_names, options)
        outputs = zip(zip(*[run.arrays for run in runs], strict=True), axes, strict=True)
        return RunResult(
            [parts[0] if axis is None else np.concatenate(parts, axis) for parts, axis in outputs],
            sum(run.input_ns for run in runs),
            sum(run.output_ns for run in runs),
        )


def _row_mismatch(names: Sequence[str], arrays: Sequence[Array], axes: Sequence[int | None], rows: int) -> str | None:
    """Which output does not have the rows that went in, or None."""
    for index, axis in enumerate(axes):
        if axis is not None:
            shape = arrays[index].shape
            if len(shape) <= axis or shape[axis] != rows:
                return f"a run of {rows} rows gave output {names[index]!r} of shape {list(shape)}"
    return None


def _joinable(parts: Sequence[Array], axis: int | None) -> bool:
    """Whether outputs of several runs have one shape, their rows apart."""
    shapes = {part.shape if axis is None else part.shape[:axis] + part.shape[axis + 1 :] for part in parts}
    return len(shapes) == 1
