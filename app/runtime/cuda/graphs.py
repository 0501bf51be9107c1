"""Capture one CUDA graph per batch size, and validate it against a plain run.

See docs/decisions/0031-record-cuda-graphs-in-the-server.md.
"""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np

from app.runtime.cuda.cudart import DEVICE_TO_DEVICE, CudaError
from app.runtime.cuda.runner import CudaRuns
from app.runtime.cuda.sizes import SizePlan
from app.runtime.tensors import Array, TensorSpec, bfloat16_values

_TOLERANCE = 1e-3
_POISON = 0xA5
_TRIALS = 12
_COPY_TRIALS = 40
_FURTHER = 4
_WORTH = 0.93

Feeds = Callable[[int], Mapping[str, Array]]


class NoBuffersError(Exception):
    """The reason why a model cannot have fixed buffers; the message is shown in ``/stats``."""


def check_buffers(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], *, batched: bool) -> None:
    """Check that the shape of every tensor is fixed, except for the rows of a batch.

    Raises:
        NoBuffersError: A shape is not fixed, or a tensor cannot be in device memory.
    """
    for spec in (*inputs, *outputs):
        if spec.datatype == "BYTES":
            raise NoBuffersError(f"{spec.name!r} holds strings")
        dynamic = spec.shape[1:] if batched else spec.shape
        if None in dynamic:
            raise NoBuffersError(f"{spec.name!r} has more dynamic dimensions than the batch: {spec.readable_shape}")
        if 0 in dynamic:
            raise NoBuffersError(f"{spec.name!r} is empty: {spec.readable_shape}")


class CudaGraphRunner(CudaRuns):
    """Runs that are validated against plain runs, and captured as CUDA graphs if possible.

    The CUDA graphs of onnxruntime (``enable_cuda_graph``) are bound to the capturing thread, block allocations of all
    other threads during the capture, and exclude the copies. Therefore this class captures around its run.
    """

    def warm_up(self, feeds: Feeds) -> None:
        """Run every size, the largest first so the arena grows only once, and compare with plain runs.

        Args:
            feeds: Makes inputs with a number of rows.

        Raises:
            NoBuffersError: An output does not have the declared shape, or the runs differ.
        """
        outputs = self.buffers.outputs
        for plan in reversed(self.plans):
            given = feeds(plan.rows)
            for item, expected in zip(outputs.values(), self._host.run(given, list(outputs)).arrays, strict=True):
                declared = ((plan.rows,) if self.batched else item.spec.shape[:1]) + item.spec.shape[1:]
                if expected.shape != declared:
                    raise NoBuffersError(
                        f"{item.spec.name!r} has shape {expected.shape}, the graph declares {declared}"
                    )
            self._compare(plan.rows, given)

    def capture(self, feeds: Feeds) -> None:
        """Capture one graph per batch size, validate each against a plain run, and choose the fastest.

        Raises:
            CudaError: The capture is refused, or a replay would differ from a run.
        """
        graphs: list[int] = []
        runtime, device_id = self._target.runtime, self._target.device_id
        runtime.set_device(device_id)
        try:
            for plan in reversed(self.plans):
                with self._lock:
                    graphs.insert(0, self._captured(plan))
            for plan, graph in zip(self.plans, graphs, strict=True):
                plan.graph = graph
            for plan in self.plans:
                self._compare(plan.rows, feeds(plan.rows))
            for plan in self.plans:
                if not plan.large:
                    plan.copy_ns = self._time_copies(plan)
            self._choose(feeds)
        except Exception as error:  # onnxruntime raises many kinds
            for plan in self.plans:
                plan.forget_graph()
            runtime.set_device(device_id)
            runtime.free(graphs=graphs)
            raise CudaError(first_line(error)) from error
        self._owned.graphs += graphs

    def _captured(self, plan: SizePlan) -> int:
        """Instantiate the graph of one size."""
        work = partial(self._run_bound if plan.large else self._queue, plan)
        graph = self._target.runtime.capture(self._target.stream, work)
        try:
            self._check_graph(graph)
            return self._target.runtime.instantiate(graph)
        finally:
            self._target.runtime.destroy(graph)

    def _time_copies(self, plan: SizePlan) -> int:
        """Cost of each copy direction within the graph of a size: half of the extra time over a graph without it."""
        runtime, stream = self._target.runtime, self._target.stream
        if plan.graph is None:
            return 0
        with self._lock:
            graph = runtime.capture(stream, partial(self._run_bound, plan))
            bare = runtime.instantiate(graph)
            runtime.destroy(graph)
            samples: dict[int, list[int]] = {plan.graph: [], bare: []}
            for _ in range(_COPY_TRIALS):
                for one, times in samples.items():
                    began = time.perf_counter_ns()
                    runtime.launch(one, stream)
                    runtime.synchronize(stream)
                    times.append(time.perf_counter_ns() - began)
            runtime.free(graphs=[bare])
        whole, alone = (statistics.median(times) for times in samples.values())
        return max(0, int(whole - alone) // 2)

    def _check_graph(self, graph: int) -> None:
        """Check that a replay reads only the buffers: other host memory may be freed by then."""
        mine = {(item.pinned, item.device) for item in self.buffers.inputs.values()}
        mine |= {(item.device, item.pinned) for item in self.buffers.outputs.values()}
        copies, callbacks, nodes = self._target.runtime.host_work(graph)
        ours = [item for item in copies if (item.source, item.target) in mine]
        foreign = [item for item in copies if item.kind != DEVICE_TO_DEVICE and item not in ours]
        if foreign or callbacks:
            raise CudaError("a node copies from host memory, or calls a host function")
        if nodes <= len(ours):
            raise CudaError("the capture is empty: the work went to another stream")

    def _choose(self, feeds: Feeds) -> None:
        """Run a size as a larger one if that is faster: kernels are slow for some numbers of rows."""
        names = list(self.buffers.outputs)
        for plan in self.plans:
            given = feeds(plan.rows)
            times = {}
            for other in self.plans[plan.index : plan.index + 1 + _FURTHER]:
                plan.run_as = other.index
                samples = []
                for _ in range(_TRIALS):
                    began = time.perf_counter_ns()
                    self.run(given, names)
                    samples.append(time.perf_counter_ns() - began)
                times[other.index] = statistics.median(samples[2:])
            best = min(times, key=times.__getitem__)
            plan.run_as = best if times[best] < _WORTH * times[plan.index] else plan.index
            if plan.run_as != plan.index:
                self._compare(plan.rows, given)

    def _compare(self, size: int, feeds: Mapping[str, Array]) -> None:
        outputs = self.buffers.outputs
        for item in outputs.values():
            item.fill(_POISON)
        names = list(outputs)
        found, expected = self.run(feeds, names).arrays, self._host.run(feeds, names).arrays
        for name, mine, other in zip(names, found, expected, strict=True):
            error = relative_error(mine, other, outputs[name].spec)
            if not error <= _TOLERANCE:
                raise NoBuffersError(f"output {name!r} of {size} rows differs by {error:.2g} from a plain run")


def relative_error(mine: Array, expected: Array, spec: TensorSpec) -> float:
    """Largest difference relative to the largest finite value; 0 or 1 for non-floating types."""
    if spec.datatype == "BF16":
        mine, expected = (bfloat16_values(array) for array in (mine, expected))
    elif spec.dtype.kind != "f":
        return float(not np.array_equal(mine, expected))
    finite = np.isfinite(expected)
    if not np.array_equal(mine[~finite], expected[~finite], equal_nan=True):
        return float("inf")
    if not finite.any():
        return 0.0
    difference = np.abs(mine[finite].astype(np.float64) - expected[finite].astype(np.float64)).max()
    return float(difference / max(float(np.abs(expected[finite].astype(np.float64)).max()), 1e-30))


def first_line(error: Exception) -> str:
    """First line of an error message."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
