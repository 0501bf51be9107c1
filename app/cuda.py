"""Running a model on CUDA from buffers that stay where they are, by one CUDA graph for each batch size."""

import logging
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import onnxruntime as ort

from app.cudart import DEVICE_TO_DEVICE, DEVICE_TO_HOST, HOST_TO_DEVICE, CudaError, CudaRuntime, view
from app.device import CUDA, Device
from app.placement import find_placement, why_not_captured
from app.tensors import Array, TensorSpec

log = logging.getLogger(__name__)

_BFLOAT16 = 16  # onnx.TensorProto.BFLOAT16
_TOLERANCE = 1e-3
_POISON = 0xA5

Plain = Callable[[Mapping[str, Array], Sequence[str]], list[Array]]
Feeds = Callable[[int], Mapping[str, Array]]


class NoBuffersError(Exception):
    """Why a model's tensors can't have buffers of their own; the message is for ``/stats``."""


@dataclass
class CudaReport:
    """How a model runs on CUDA, as ``/stats`` tells it.

    Attributes:
        device_id: the device.
        mode: ``graph``: one CUDA graph for each batch size; ``bound``: node by node from the same buffers; ``host``:
            node by node from arrays that are copied anew.
        reason: why not a quicker mode, or None.
        batch_sizes: to which batches are padded, or None in the mode ``host``.
        tf32: whether products of float32 are computed in TF32.
        tf32_max_relative_error: of the outputs against those without, over the largest of them, on random rows.
        buffer_bytes: of the device, for inputs and outputs.
    """

    device_id: int
    mode: str = "host"
    reason: str | None = None
    batch_sizes: tuple[int, ...] | None = None
    tf32: bool = False
    tf32_max_relative_error: float | None = None
    buffer_bytes: int = 0


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


@dataclass
class _Buffer:
    """One tensor for the largest batch: pinned memory of the host, an array over it, and memory of the device."""

    spec: TensorSpec
    pinned: int
    device: int
    array: Array
    raw: Array
    row_bytes: int


@dataclass
class _Owned:
    """What has to be given back in the end."""

    device: list[int] = field(default_factory=list)
    pinned: list[int] = field(default_factory=list)
    graphs: list[int] = field(default_factory=list)


class CudaRunner:
    """Runs a session from buffers of its own.

    A run copies its inputs into pinned memory, pads them to the next batch size with what lies there, queues the copies
    to the device, the graph and the copies back, and waits once. In the mode ``graph`` all that is queued is one CUDA
    graph with the copies in it, so that a run is one launch. One run at a time: runs share their buffers, and those of
    different sizes the runtime's memory for what lies between.

    onnxruntime's own graphs (``enable_cuda_graph``) belong to the thread that recorded them, keep all other threads
    from allocating meanwhile, and leave the copies out; so the recording is done here, around its run.

    Args:
        session: made with ``stream`` as its ``user_compute_stream``.
        inputs, outputs: what it takes and gives, see ``check_buffers``.
        max_rows: of the largest batch; None for a model that is not batched.
        plain: runs the session on arrays of the host; for more rows than the largest batch, and to compare with.
        runtime, device_id, stream: where to run.
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
    ) -> None:
        self.sizes = (1,) if max_rows is None else batch_sizes(max_rows)
        self.batched = max_rows is not None
        self._session = session
        self._plain = plain
        self._runtime = runtime
        self._device_id = device_id
        self._stream = stream
        self._lock = threading.Lock()
        self._graphs: list[int] = []
        owned = self._owned = _Owned()
        weakref.finalize(self, _give_back, runtime, device_id, owned)
        runtime.set_device(device_id)
        self._inputs = {spec.name: self._buffer(spec, owned) for spec in inputs}
        self._outputs = {spec.name: self._buffer(spec, owned) for spec in outputs}
        self._bindings = [self._bind(size) for size in self.sizes]
        self._options = ort.RunOptions()
        # The run returns once it is queued; this class waits for it, after the copies.
        self._options.add_run_config_entry("disable_synchronize_execution_providers", "1")

    @property
    def buffer_bytes(self) -> int:
        """Of the device, for inputs and outputs."""
        return sum(item.row_bytes * self.sizes[-1] for item in (*self._inputs.values(), *self._outputs.values()))

    def _buffer(self, spec: TensorSpec, owned: _Owned) -> _Buffer:
        rest = tuple(size or 1 for size in (spec.shape[1:] if self.batched else spec.shape))
        row_bytes = spec.dtype.itemsize * int(np.prod(rest, dtype=np.int64))
        size = row_bytes * self.sizes[-1]
        owned.pinned.append(self._runtime.pinned_memory(size))
        owned.device.append(self._runtime.device_memory(size))
        shape = (self.sizes[-1], *rest) if self.batched else rest
        array = view(owned.pinned[-1], shape, spec.dtype)
        raw = view(owned.pinned[-1], (size,), np.dtype(np.uint8))
        raw[:] = 0
        return _Buffer(spec, owned.pinned[-1], owned.device[-1], array, raw, row_bytes)

    def _bind(self, size: int) -> Any:
        binding = self._session.io_binding()
        for bind, buffers in ((binding.bind_input, self._inputs), (binding.bind_output, self._outputs)):
            for name, item in buffers.items():
                element = _BFLOAT16 if item.spec.datatype == "BF16" else item.spec.dtype.type
                shape = [size, *item.array.shape[1:]] if self.batched else list(item.array.shape)
                bind(name, self.memory, self._device_id, element, shape, item.device)
        return binding

    def run(self, feeds: Mapping[str, Array], output_names: Sequence[str]) -> list[Array]:
        """Run the graph.

        Raises:
            CudaError: the runtime reports one.
        """
        with self._lock:
            if not self.batched:
                for name, array in feeds.items():
                    self._inputs[name].array[...] = array
                self._go(0)
                return [self._outputs[name].array.copy() for name in output_names]
            rows = len(next(iter(feeds.values())))
            if not 0 < rows <= self.sizes[-1]:
                return self._plain(feeds, output_names)
            for name, array in feeds.items():
                self._inputs[name].array[:rows] = array
            self._go(size_index(rows))
            return [self._outputs[name].array[:rows].copy() for name in output_names]

    def _go(self, index: int) -> None:
        """Run one size and wait."""
        if self._device_id:
            self._runtime.set_device(self._device_id)
        if self._graphs:
            self._runtime.launch(self._graphs[index], self._stream)
        else:
            self._queue(index)
        self._runtime.synchronize(self._stream)

    def _queue(self, index: int) -> None:
        """Queue the copies and the run of one size."""
        size = self.sizes[index]
        for item in self._inputs.values():
            self._runtime.copy(item.device, item.pinned, size * item.row_bytes, HOST_TO_DEVICE, self._stream)
        self._session.run_with_iobinding(self._bindings[index], self._options)
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
            for spec, expected in zip(
                (item.spec for item in self._outputs.values()), self._plain(given, names), strict=True
            ):
                declared = ((size,) if self.batched else spec.shape[:1]) + spec.shape[1:]
                if expected.shape != declared:
                    raise NoBuffersError(f"{spec.name!r} came out as {expected.shape}, not as {declared}")
            self._compare(size, given)

    def capture(self, feeds: Feeds) -> None:
        """Record the graph of every size, and compare what each replays with a plain run.

        Raises:
            CudaError: the recording is refused, or would not do what a run does.
        """
        graphs: list[int] = []
        self._runtime.set_device(self._device_id)
        try:
            for index in reversed(range(len(self.sizes))):
                with self._lock:
                    graph = self._runtime.capture(self._stream, partial(self._queue, index))
                    try:
                        self._check_graph(graph)
                        graphs.insert(0, self._runtime.instantiate(graph))
                    finally:
                        self._runtime.destroy(graph)
            self._graphs = graphs
            for size in self.sizes:
                self._compare(size, feeds(size))
        except Exception as error:  # onnxruntime raises many kinds
            self._graphs = []
            self._runtime.set_device(self._device_id)
            self._runtime.free([], [], graphs)
            raise CudaError(_first_line(error)) from error
        self._owned.graphs += graphs

    def _check_graph(self, graph: int) -> None:
        """A replay must need nothing of the host but the buffers: what else lay there is gone by then."""
        mine = {(item.pinned, item.device) for item in self._inputs.values()}
        mine |= {(item.device, item.pinned) for item in self._outputs.values()}
        copies, callbacks, nodes = self._runtime.host_work(graph)
        foreign = [item for item in copies if item.kind != DEVICE_TO_DEVICE and (item.source, item.target) not in mine]
        if foreign or callbacks:
            raise CudaError("a node copies from memory of the host, or calls it")
        if nodes <= len(mine):
            raise CudaError("the recording holds no work: it went to another stream")

    def _compare(self, size: int, feeds: Mapping[str, Array]) -> None:
        names = list(self._outputs)
        for item in self._outputs.values():
            item.raw[:] = _POISON
        for name, mine, expected in zip(names, self.run(feeds, names), self._plain(feeds, names), strict=True):
            error = relative_error(mine, expected, self._outputs[name].spec)
            if not error <= _TOLERANCE:
                raise NoBuffersError(f"output {name!r} of {size} rows is off by {error:.2g} from a plain run")


def _give_back(runtime: CudaRuntime, device_id: int, owned: _Owned) -> None:
    try:
        runtime.set_device(device_id)
    except CudaError as error:
        log.warning("memory of device %d is not given back: %s", device_id, error)
        return
    runtime.free(owned.device, owned.pinned, owned.graphs)


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


def accelerate(
    session: Any,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    max_rows: int | None,
    device: Device,
    stream: int | None,
    feeds: Feeds,
    plain: Plain,
) -> tuple[CudaReport, CudaRunner | None]:
    """Find the quickest way in which a session on CUDA can be run.

    Args:
        session, inputs, outputs, max_rows, plain, stream: see ``CudaRunner``; without a stream there is no runner.
        device: what the session was made for.
        feeds: makes inputs of so many rows.

    Returns:
        Which way that is, and the runner; None where runs go from arrays of the host.
    """
    report = CudaReport(device.cuda.device_id, tf32=device.cuda.tf32)
    if device.runtime is None or stream is None:
        report.reason = f"no buffers: {device.runtime_problem}"
        return report, None
    try:
        check_buffers(inputs, outputs, batched=max_rows is not None)
        runner = CudaRunner(session, inputs, outputs, max_rows, plain, device.runtime, device.cuda.device_id, stream)
        runner.warm_up(feeds)
    except Exception as error:  # noqa: BLE001 - onnxruntime raises many kinds; random input is not to every model's liking
        report.reason = f"no buffers: {_first_line(error)}"
        return report, None
    report.mode = "bound"
    report.batch_sizes = runner.sizes if runner.batched else None
    report.buffer_bytes = runner.buffer_bytes
    why = why_not_captured(find_placement(session), CUDA) if device.cuda.graphs else "cuda_graphs is off"
    if why is None:
        try:
            runner.capture(feeds)
            report.mode = "graph"
        except CudaError as error:
            why = str(error)
    if why is not None:
        report.reason = f"no graphs: {why}"
    return report, runner


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
