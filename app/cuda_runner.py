"""Running a session on CUDA from buffers that stay where they are, by one CUDA graph for each batch size."""

import statistics
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import onnxruntime as ort

from app.cuda_buffers import Bodies, Buffer, LoanPool, Owned, give_back
from app.cudart import DEVICE_TO_DEVICE, DEVICE_TO_HOST, HOST_TO_DEVICE, CudaError, CudaRuntime
from app.tensors import Array, TensorSpec

_BFLOAT16 = 16  # onnx.TensorProto.BFLOAT16
_TOLERANCE = 1e-3
_POISON = 0xA5
_LARGE_BYTES = 64 * 1024
_CHUNK_BYTES = 512 * 1024
_LAST_CHUNK_BYTES = 64 * 1024
_TRIALS = 12
_COPY_TRIALS = 40
_FURTHER = 4
_WORTH = 0.93

Parts = Array | list[Array]
Plain = Callable[[Mapping[str, Any], Sequence[str]], list[Array]]
Feeds = Callable[[int], Mapping[str, Array]]
Meanwhile = Callable[[], None]


class NoBuffersError(Exception):
    """Why a model's tensors can't have buffers of their own; the message is for ``/stats``."""


def batch_sizes(max_rows: int) -> tuple[int, ...]:
    """The sizes that batches are padded to: powers of two, and the maximum."""
    sizes = []
    size = 1
    while size < max_rows:
        sizes.append(size)
        size *= 2
    return (*sizes, max_rows)


def size_index(rows: int) -> int:
    """Which of the ``batch_sizes`` is the smallest that holds so many rows."""
    return (rows - 1).bit_length()


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


class CudaRunner:
    """Runs a session from buffers of its own.

    A run copies its inputs into pinned memory, queues the copies to the device, the graph and the copies back, and
    waits once. The batch is padded with what lies in the buffers. Where the tensors are small, the copies are part of
    the graph, so that a run is one launch; where they are large, the rows that are there are copied piece by piece,
    each while the next is put into place, and results stay in the pinned memory that they came to.

    One run at a time: runs share their buffers, and those of different sizes the runtime's memory for what lies
    between.

    onnxruntime's own graphs (``enable_cuda_graph``) belong to the thread that recorded them, keep all other threads
    from allocating meanwhile, and leave the copies out; so the recording is done here, around its run.

    Args:
        session: made with ``stream`` as its ``user_compute_stream``.
        inputs, outputs: what it takes and gives, see ``check_buffers``.
        max_rows: of the largest batch; None for a model that is not batched.
        plain: runs the session on arrays of the host; for more rows than the largest batch, and to compare with.
        runtime, device_id, stream: where to run.
        bodies: large inputs that lie in there are copied to the device from where they are.

    Attributes:
        sizes: that batches are padded to.
        padded_to: for each of them the size that its batches are run at: itself, or a larger one that is quicker.
        input_ns, output_ns: of the last run, what copying its inputs and outputs took. For large ones it is time of
            the device, from the beginning of the run to the end of the last copy in, and from the end of the graph to
            that of the last copy out; what is part of the graph is what it took in trials when the graph was recorded.
            Of few rows in a graph of many it is what the host took, the rest counts as the model's.
        aside_ns: what the last run took longer because of what was done meanwhile.
    """

    memory = "cuda"
    """Where onnxruntime is told that the buffers are."""

    def __init__(
        self,
        session: Any,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        max_rows: int | None,
        plain: Plain,
        runtime: CudaRuntime,
        device_id: int,
        stream: int,
        bodies: Bodies | None = None,
    ) -> None:
        self.sizes = (1,) if max_rows is None else batch_sizes(max_rows)
        self.padded_to = self.sizes
        self.batched = max_rows is not None
        self.input_ns = self.output_ns = self.aside_ns = 0
        self._session = session
        self._plain = plain
        self._runtime = runtime
        self._device_id = device_id
        self._stream = stream
        self._bodies = bodies
        self._lock = threading.Lock()
        self._graphs: list[int] = []
        owned = self._owned = Owned()
        weakref.finalize(self, give_back, runtime, device_id, owned)
        runtime.set_device(device_id)
        self._inputs = {spec.name: Buffer(spec, max_rows, runtime, stream, owned) for spec in inputs}
        self._outputs = {spec.name: Buffer(spec, max_rows, runtime, stream, owned) for spec in outputs}
        self._pools = {name: LoanPool(item.nbytes, runtime, device_id) for name, item in self._outputs.items()}
        self._began, self._sent, self._ran, self._copied = owned.events = [runtime.make_event() for _ in range(4)]
        buffers = (*self._inputs.values(), *self._outputs.values())
        self.buffer_bytes = sum(item.nbytes for item in buffers)
        self._row_bytes = sum(item.row_bytes for item in buffers)
        self._large = [size * self._row_bytes > _LARGE_BYTES for size in self.sizes]
        self._bindings = [self._bind(size) for size in self.sizes]
        self._options = ort.RunOptions()
        # The run returns once it is queued; this class waits for it, after the copies.
        self._options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        self._chosen = list(range(len(self.sizes)))
        self._copies_ns = [0] * len(self.sizes)

    def _bind(self, size: int) -> Any:
        binding = self._session.io_binding()
        for bind, buffers in ((binding.bind_input, self._inputs), (binding.bind_output, self._outputs)):
            for name, item in buffers.items():
                element = _BFLOAT16 if item.spec.datatype == "BF16" else item.spec.dtype.type
                shape = [size, *item.array.shape[1:]] if self.batched else list(item.array.shape)
                bind(name, self.memory, self._device_id, element, shape, item.device)
        return binding

    def run(
        self, feeds: Mapping[str, Parts], output_names: Sequence[str], meanwhile: Meanwhile | None = None
    ) -> list[Array]:
        """Run the graph.

        Args:
            feeds: input name to array, or to arrays that are to be one below the other.
            output_names: outputs to give, in order.
            meanwhile: what else is to be done; called while the device is at work, or not at all where that is short.

        Raises:
            CudaError: the runtime reports one.
        """
        with self._lock:
            rows = self._rows(feeds)
            self.aside_ns = 0
            if not 0 < rows <= self.sizes[-1]:
                self.input_ns = self.output_ns = 0
                return self._plain({name: _joined(parts) for name, parts in feeds.items()}, output_names)
            index = self._chosen[size_index(rows)]
            if self._device_id:
                self._runtime.set_device(self._device_id)
            if not self._large[index]:
                return self._run_small(feeds, output_names, rows, index)
            return self._run_large(feeds, output_names, rows, index, meanwhile)

    def _rows(self, feeds: Mapping[str, Parts]) -> int:
        if not self.batched:
            return 1
        first = next(iter(feeds.values()))
        return sum(map(len, first)) if isinstance(first, list) else len(first)

    def _run_small(self, feeds: Mapping[str, Parts], output_names: Sequence[str], rows: int, index: int) -> list[Array]:
        began = time.perf_counter_ns()
        for name, parts in feeds.items():
            if not self.batched:
                self._inputs[name].array[...] = parts
            elif isinstance(parts, list):
                np.concatenate(parts, out=self._inputs[name].array[:rows])
            else:
                self._inputs[name].array[:rows] = parts
        ready = time.perf_counter_ns()
        self._go(index)
        ended = time.perf_counter_ns()
        arrays = [self._outputs[name].array for name in output_names]
        results = [array[:rows].copy() for array in arrays] if self.batched else [array.copy() for array in arrays]
        within_ns = self._copies_ns[index]
        self.input_ns = ready - began + within_ns
        self.output_ns = time.perf_counter_ns() - ended + within_ns
        return results

    def _go(self, index: int) -> None:
        """Run what lies in the pinned buffers, back into them, and wait."""
        if self._graphs:
            self._runtime.launch(self._graphs[index], self._stream)
        else:
            self._queue(index)
        self._runtime.synchronize(self._stream)

    def _run_large(
        self,
        feeds: Mapping[str, Parts],
        output_names: Sequence[str],
        rows: int,
        index: int,
        meanwhile: Meanwhile | None,
    ) -> list[Array]:
        runtime, stream = self._runtime, self._stream
        timed = meanwhile is not None or rows * self._row_bytes > _LARGE_BYTES
        mark = partial(runtime.record, stream=stream) if timed else _ignore
        began = time.perf_counter_ns()
        mark(self._began)
        for name, parts in feeds.items():
            self._send(self._inputs[name], parts, rows)
        mark(self._sent)
        sent = time.perf_counter_ns()
        if self._graphs:
            runtime.launch(self._graphs[index], stream)
        else:
            self._run_bound(index)
        mark(self._ran)
        results = []
        for name in output_names:
            item = self._outputs[name]
            shape = (rows, *item.array.shape[1:]) if self.batched else item.array.shape
            lent = self._pools[name].take(shape, item.spec.dtype)
            if lent is not None:
                target, array = lent
                runtime.copy(target, item.device, rows * item.row_bytes, DEVICE_TO_HOST, stream)
            else:
                runtime.copy(item.pinned, item.device, rows * item.row_bytes, DEVICE_TO_HOST, stream)
                runtime.synchronize(stream)
                array = (item.array[:rows] if self.batched else item.array).copy()
            results.append(array)
        mark(self._copied)
        queued = time.perf_counter_ns()
        if meanwhile is not None:
            meanwhile()
        free = time.perf_counter_ns()
        runtime.synchronize(stream)
        ended = time.perf_counter_ns()
        self.input_ns = runtime.elapsed_ns(self._began, self._sent) if timed else sent - began
        self.output_ns = runtime.elapsed_ns(self._ran, self._copied) if timed else 0
        if meanwhile is not None:
            whole_ns = runtime.elapsed_ns(self._began, self._copied)
            self.aside_ns = max(0, min(free - queued, ended - began - whole_ns))
        # What the counting takes is no time of the model.
        self.output_ns += time.perf_counter_ns() - ended
        return results

    def _send(self, item: Buffer, parts: Parts, rows: int) -> None:
        """Copy an input to the device: from where it lies, or by way of the pinned memory, in pieces."""
        if not self.batched:
            item.array[...] = parts
            self._runtime.copy(item.device, item.pinned, item.row_bytes, HOST_TO_DEVICE, self._stream)
            return
        lying = self._lying(parts)
        if lying is not None:
            target = item.device
            for address, nbytes in lying:
                self._runtime.copy(target, address, nbytes, HOST_TO_DEVICE, self._stream)
                target += nbytes
            return
        done = 0
        for piece, size in _pieces(parts, rows, item.row_bytes):
            if isinstance(piece, list):
                np.concatenate(piece, out=item.array[done : done + size])
            else:
                item.array[done : done + size] = piece
            offset = done * item.row_bytes
            self._runtime.copy(
                item.device + offset, item.pinned + offset, size * item.row_bytes, HOST_TO_DEVICE, self._stream
            )
            done += size

    def _lying(self, parts: Parts) -> list[tuple[int, int]] | None:
        """Addresses and bytes of arrays that all lie where the device can copy from, else None."""
        if self._bodies is None:
            return None
        found = []
        for part in parts if isinstance(parts, list) else [parts]:
            address = self._bodies.address(part)
            if address is None:
                return None
            found.append((address, part.nbytes))
        return found

    def _queue(self, index: int) -> None:
        """Queue the copies and the run of one size."""
        size = self.sizes[index]
        for item in self._inputs.values():
            self._runtime.copy(item.device, item.pinned, size * item.row_bytes, HOST_TO_DEVICE, self._stream)
        self._run_bound(index)
        for item in self._outputs.values():
            self._runtime.copy(item.pinned, item.device, size * item.row_bytes, DEVICE_TO_HOST, self._stream)

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

    def _run_bound(self, index: int) -> None:
        self._session.run_with_iobinding(self._bindings[index], self._options)

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


def _ignore(_event: int) -> None:
    """Take down no time: for few rows that would take as long as the copies."""


def _joined(parts: Parts) -> Array:
    return np.concatenate(parts) if isinstance(parts, list) else parts


def _piece_rows(left: int, row_bytes: int) -> int:
    """Rows of the next piece of those that are left: smaller towards the end, when nothing more hides its copying."""
    wanted = min(_CHUNK_BYTES, max(_LAST_CHUNK_BYTES, left * row_bytes // 2))
    return max(1, min(left, wanted // row_bytes))


def _pieces(parts: Parts, rows: int, row_bytes: int) -> Iterator[tuple[Parts, int]]:
    """Cut or gather rows into pieces, each with how many it has."""
    done = 0
    if not isinstance(parts, list):
        while done < rows:
            size = _piece_rows(rows - done, row_bytes)
            yield parts[done : done + size], size
            done += size
        return
    group: list[Array] = []
    size = 0
    for part in parts:
        group.append(part)
        size += len(part)
        if size >= _piece_rows(rows - done, row_bytes):
            yield group, size
            done += size
            group, size = [], 0
    if group:
        yield group, size


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
