"""Finding out how a session on CUDA is run from buffers: by one CUDA graph for each batch size, each compared first."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np

from app.cuda_runs import CudaRuns
from app.cudart import DEVICE_TO_DEVICE, CudaError
from app.tensors import Array, TensorSpec

_TOLERANCE = 1e-3
_POISON = 0xA5
_TRIALS = 12
_COPY_TRIALS = 40
_FURTHER = 4
_WORTH = 0.93

Feeds = Callable[[int], Mapping[str, Array]]


class NoBuffersError(Exception):
    """Why a model's tensors can't have buffers of their own; the message is for ``/stats``."""


def check_buffers(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], *, batched: bool) -> None:
    """See that every tensor's shape is known beforehand, but for the rows of a batch.

    Raises:
        NoBuffersError: one is not, or can't lie on the device.
    """
    for spec in (*inputs, *outputs):
        if spec.datatype == "BYTES":
            raise NoBuffersError(f"{spec.name!r} holds strings")
        dynamic = spec.shape[1:] if batched else spec.shape
        if None in dynamic:
            raise NoBuffersError(f"{spec.name!r} has more dynamic dimensions than the batch: {spec.readable_shape}")
        if 0 in dynamic:
            raise NoBuffersError(f"{spec.name!r} is empty: {spec.readable_shape}")


class CudaRunner(CudaRuns):
    """Runs that are compared with plain ones, and recorded where that is possible.

    onnxruntime's own graphs (``enable_cuda_graph``) belong to the thread that recorded them, keep all other threads
    from allocating meanwhile, and leave the copies out; so the recording is done here, around its run.
    """

    def warm_up(self, feeds: Feeds) -> None:
        """Run every size, the largest first, and compare with plain runs; so the runtime's memory grows but once.

        Args:
            feeds: makes inputs of so many rows.

        Raises:
            NoBuffersError: an output does not have the shape that the graph declares, or the runs differ.
        """
        names = list(self._outputs)
        for size in reversed(self.sizes):
            given = feeds(size)
            for item, expected in zip(self._outputs.values(), self._plain(given, names), strict=True):
                declared = ((size,) if self.batched else item.spec.shape[:1]) + item.spec.shape[1:]
                if expected.shape != declared:
                    raise NoBuffersError(f"{item.spec.name!r} came out as {expected.shape}, not as {declared}")
            self._compare(size, given)

    def capture(self, feeds: Feeds) -> None:
        """Record the graph of every size, compare what each replays with a plain run, and choose the quickest.

        Raises:
            CudaError: the recording is refused, or would not do what a run does.
        """
        graphs: list[int] = []
        self._runtime.set_device(self._device_id)
        try:
            for index in reversed(range(len(self.sizes))):
                with self._lock:
                    graph = self._runtime.capture(self._stream, partial(self._record, index))
                    try:
                        self._check_graph(graph)
                        graphs.insert(0, self._runtime.instantiate(graph))
                    finally:
                        self._runtime.destroy(graph)
            self._graphs = graphs
            for size in self.sizes:
                self._compare(size, feeds(size))
            for index in range(len(self.sizes)):
                if not self._large[index]:
                    self._copies_ns[index] = self._time_copies(index)
            self._choose(feeds)
        except Exception as error:  # onnxruntime raises many kinds
            self._graphs = []
            self._chosen = list(range(len(self.sizes)))
            self._copies_ns = [0] * len(self.sizes)
            self._runtime.set_device(self._device_id)
            self._runtime.free(graphs=graphs)
            raise CudaError(first_line(error)) from error
        self._owned.graphs += graphs

    def _record(self, index: int) -> None:
        if self._large[index]:
            self._run_bound(index)
        else:
            self._queue(index)

    def _time_copies(self, index: int) -> int:
        """What each way of copying takes within the graph of a size: half of what it takes longer than one without."""
        with self._lock:
            graph = self._runtime.capture(self._stream, partial(self._run_bound, index))
            bare = self._runtime.instantiate(graph)
            self._runtime.destroy(graph)
            samples: dict[int, list[int]] = {self._graphs[index]: [], bare: []}
            for _ in range(_COPY_TRIALS):
                for one, times in samples.items():
                    began = time.perf_counter_ns()
                    self._runtime.launch(one, self._stream)
                    self._runtime.synchronize(self._stream)
                    times.append(time.perf_counter_ns() - began)
            self._runtime.free(graphs=[bare])
        whole, alone = (statistics.median(times) for times in samples.values())
        return max(0, int(whole - alone) // 2)

    def _check_graph(self, graph: int) -> None:
        """A replay must need nothing of the host but the buffers: what else lay there is gone by then."""
        mine = {(item.pinned, item.device) for item in self._inputs.values()}
        mine |= {(item.device, item.pinned) for item in self._outputs.values()}
        copies, callbacks, nodes = self._runtime.host_work(graph)
        ours = [item for item in copies if (item.source, item.target) in mine]
        foreign = [item for item in copies if item.kind != DEVICE_TO_DEVICE and item not in ours]
        if foreign or callbacks:
            raise CudaError("a node copies from memory of the host, or calls it")
        if nodes <= len(ours):
            raise CudaError("the recording holds no work: it went to another stream")

    def _choose(self, feeds: Feeds) -> None:
        """Find out where a larger size is quicker: some numbers of rows are ill served by the kernels that they get."""
        names = list(self._outputs)
        for index, size in enumerate(self.sizes):
            given = feeds(size)
            times = {}
            for other in range(index, min(index + 1 + _FURTHER, len(self.sizes))):
                self._chosen[index] = other
                samples = []
                for _ in range(_TRIALS):
                    began = time.perf_counter_ns()
                    self.run(given, names)
                    samples.append(time.perf_counter_ns() - began)
                times[other] = statistics.median(samples[2:])
            best = min(times, key=times.__getitem__)
            self._chosen[index] = best if times[best] < _WORTH * times[index] else index
            if best != index and self._chosen[index] == best:
                self._compare(size, given)
        self.padded_to = tuple(self.sizes[index] for index in self._chosen)

    def _compare(self, size: int, feeds: Mapping[str, Array]) -> None:
        names = list(self._outputs)
        for item in self._outputs.values():
            item.fill(_POISON)
        for name, mine, expected in zip(names, self.run(feeds, names), self._plain(feeds, names), strict=True):
            error = relative_error(mine, expected, self._outputs[name].spec)
            if not error <= _TOLERANCE:
                raise NoBuffersError(f"output {name!r} of {size} rows is off by {error:.2g} from a plain run")


def relative_error(mine: Array, expected: Array, spec: TensorSpec) -> float:
    """The largest difference over the largest finite value; 0 or 1 for what is no floating-point number."""
    if spec.datatype == "BF16":
        mine, expected = ((array.astype(np.uint32) << 16).view(np.float32) for array in (mine, expected))
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
    """What an error says, cut to one line."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
