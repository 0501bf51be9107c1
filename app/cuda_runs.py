"""Runs of a session on CUDA from buffers that stay where they are."""

import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import onnxruntime as ort

from app.cuda_buffers import Bodies, Buffer, LoanPool, Owned, give_back
from app.cudart import DEVICE_TO_HOST, HOST_TO_DEVICE, CudaRuntime
from app.tensors import Array, TensorSpec

_BFLOAT16 = 16  # onnx.TensorProto.BFLOAT16
_LARGE_BYTES = 64 * 1024
_CHUNK_BYTES = 512 * 1024
_LAST_CHUNK_BYTES = 64 * 1024

Parts = Array | list[Array]
Plain = Callable[[Mapping[str, Any], Sequence[str]], list[Array]]
Meanwhile = Callable[[], None]


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


class CudaRuns:
    """Runs a session from buffers of its own.

    A run copies its inputs into pinned memory, queues the copies to the device, the graph and the copies back, and
    waits once. The batch is padded with what lies in the buffers. Where the tensors are small, the copies are part of
    the graph, so that a run is one launch; where they are large, the rows that are there are copied piece by piece,
    each while the next is put into place, and results stay in the pinned memory that they came to.

    One run at a time: runs share their buffers, and those of different sizes the runtime's memory for what lies
    between.

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

    def _run_bound(self, index: int) -> None:
        self._session.run_with_iobinding(self._bindings[index], self._options)


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
