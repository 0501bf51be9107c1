"""Run a session on CUDA from fixed buffers."""

import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import onnxruntime as ort

from app.runtime.cuda.buffers import BufferSet, CudaTarget, Owned, give_back
from app.runtime.cuda.cudart import DEVICE_TO_HOST, HOST_TO_DEVICE, CudaRuntime
from app.runtime.cuda.sizes import SizePlan, batch_sizes, size_index
from app.runtime.cuda.transfer import joined, row_count, send
from app.runtime.runner import Meanwhile, Parts, Runner, RunResult
from app.runtime.signature import Signature
from app.runtime.tensors import Array

_BFLOAT16 = 16  # onnx.TensorProto.BFLOAT16
_LARGE_BYTES = 64 * 1024


class _Events(NamedTuple):
    """CUDA events that time one run: start, end of the input copies, end of the graph, end of the output copies."""

    began: int
    sent: int
    ran: int
    copied: int

    @classmethod
    def make(cls, runtime: CudaRuntime, owned: Owned) -> "_Events":
        owned.events = [runtime.make_event() for _ in cls._fields]
        return cls(*owned.events)


class CudaRuns:
    """Runs a session from fixed buffers.

    A run copies its inputs into pinned memory, queues the copies to the device, the graph and the copies back, and
    waits once. The contents of the buffers pad the batch. For small tensors the copies are part of the graph, so a run
    is one launch. For large tensors only the rows of the batch are copied, piece by piece: one piece transfers
    while the next is written to pinned memory. Outputs stay in the pinned memory that received them.

    One run at a time: runs share their buffers, and runs of different sizes share the runtime's memory for
    intermediate values.

    Times of a run with large tensors: ``input_ns`` and ``output_ns`` are device time, from the start of the run to the
    end of the last input copy, and from the end of the graph to the end of the last output copy. Copies within
    the graph count with the duration measured at capture. For few rows in a graph of many, they are the
    host time of the copies, and the rest counts as model time.

    Args:
        session: Session of onnxruntime, made with the target's stream as its ``user_compute_stream``.
        signature: Tensors of the model, see ``check_buffers``.
        max_rows: Size of the largest batch; None for a model without batching.
        host: Runs the session on arrays in host memory: for batches above ``max_rows``, and for validation.
        target: The device and stream.

    Attributes:
        plans: The way to run a batch of each size, the smallest first.
        buffers: Buffers of the tensors.
    """

    gathers = True
    memory = "cuda"
    """Bind the buffers to the session."""

    def __init__(
        self, session: Any, signature: Signature, max_rows: int | None, host: Runner, target: CudaTarget
    ) -> None:
        self._session = session
        self._host = host
        self._target = target
        self._lock = threading.Lock()
        owned = self._owned = Owned()
        weakref.finalize(self, give_back, target.runtime, target.device_id, owned)
        target.runtime.set_device(target.device_id)
        self.buffers = BufferSet(signature, max_rows, target, owned)
        self._events = _Events.make(target.runtime, owned)
        sizes = (1,) if max_rows is None else batch_sizes(max_rows)
        self.plans = [
            SizePlan(rows, index, rows * self.buffers.row_bytes > _LARGE_BYTES, self._bind(rows), index)
            for index, rows in enumerate(sizes)
        ]
        self._options = ort.RunOptions()
        # The run returns once its work is queued; this class waits for it, after the copies.
        self._options.add_run_config_entry("disable_synchronize_execution_providers", "1")

    @property
    def batched(self) -> bool:
        """Whether the model is batched."""
        return self.buffers.batched

    @property
    def sizes(self) -> tuple[int, ...]:
        """The sizes that batches are padded to."""
        return tuple(plan.rows for plan in self.plans)

    @property
    def padded_to(self) -> tuple[int, ...]:
        """Run size for each batch size: the size itself, or a larger and faster one."""
        return tuple(self.plans[plan.run_as].rows for plan in self.plans)

    def _bind(self, size: int) -> Any:
        binding = self._session.io_binding()
        buffers = self.buffers
        for bind, items in ((binding.bind_input, buffers.inputs), (binding.bind_output, buffers.outputs)):
            for name, item in items.items():
                element = _BFLOAT16 if item.spec.datatype == "BF16" else item.spec.dtype.type
                shape = [size, *item.array.shape[1:]] if self.batched else list(item.array.shape)
                bind(name, self.memory, self._target.device_id, element, shape, item.device)
        return binding

    def run(
        self,
        feeds: Mapping[str, Parts],
        output_names: Sequence[str],
        options: ort.RunOptions | None = None,
        meanwhile: Meanwhile | None = None,
    ) -> RunResult:
        """Run the graph; see ``Runner``.

        A graph cannot be stopped: ``options`` only apply to runs from arrays in host memory.

        Raises:
            CudaError: The runtime reports an error.
        """
        with self._lock:
            rows = row_count(next(iter(feeds.values()))) if self.batched else 1
            if not 0 < rows <= self.plans[-1].rows:
                return self._host.run({name: joined(parts) for name, parts in feeds.items()}, output_names, options)
            plan = self.plans[self.plans[size_index(rows)].run_as]
            if self._target.runtime.several:
                self._target.runtime.set_device(self._target.device_id)
            if plan.large:
                return self._run_large(feeds, output_names, rows, plan, meanwhile)
            return self._run_small(feeds, output_names, rows, plan)

    def _run_small(
        self, feeds: Mapping[str, Parts], output_names: Sequence[str], rows: int, plan: SizePlan
    ) -> RunResult:
        buffers = self.buffers
        began = time.perf_counter_ns()
        for name, parts in feeds.items():
            if not self.batched:
                buffers.inputs[name].array[...] = parts
            elif isinstance(parts, list):
                np.concatenate(parts, out=buffers.inputs[name].array[:rows])
            else:
                buffers.inputs[name].array[:rows] = parts
        ready = time.perf_counter_ns()
        self._run_within(plan)
        ended = time.perf_counter_ns()
        arrays = [buffers.outputs[name].array for name in output_names]
        results = [array[:rows].copy() for array in arrays] if self.batched else [array.copy() for array in arrays]
        return RunResult(results, ready - began + plan.copy_ns, time.perf_counter_ns() - ended + plan.copy_ns)

    def _run_within(self, plan: SizePlan) -> None:
        """Run on the contents of the pinned buffers, write back into them, and wait."""
        target = self._target
        if plan.graph is not None:
            target.runtime.launch(plan.graph, target.stream)
        else:
            self._queue(plan)
        target.runtime.synchronize(target.stream)

    def _run_large(
        self,
        feeds: Mapping[str, Parts],
        output_names: Sequence[str],
        rows: int,
        plan: SizePlan,
        meanwhile: Meanwhile | None,
    ) -> RunResult:
        runtime, stream, events = self._target.runtime, self._target.stream, self._events
        # For few rows, recording events would take as long as the copies.
        timed = meanwhile is not None or rows * self.buffers.row_bytes > _LARGE_BYTES
        mark = partial(runtime.record, stream=stream) if timed else _ignore
        began = time.perf_counter_ns()
        mark(events.began)
        for name, parts in feeds.items():
            self._send(name, parts)
        mark(events.sent)
        sent = time.perf_counter_ns()
        if plan.graph is not None:
            runtime.launch(plan.graph, stream)
        else:
            self._run_bound(plan)
        mark(events.ran)
        arrays = [self._fetch(name, rows) for name in output_names]
        mark(events.copied)
        queued = time.perf_counter_ns()
        if meanwhile is not None:
            meanwhile()
        free = time.perf_counter_ns()
        runtime.synchronize(stream)
        ended = time.perf_counter_ns()
        if not timed:
            return RunResult(arrays, sent - began, time.perf_counter_ns() - ended)
        input_ns = runtime.elapsed_ns(events.began, events.sent)
        output_ns = runtime.elapsed_ns(events.ran, events.copied)
        meanwhile_ns = 0
        if meanwhile is not None:
            whole_ns = runtime.elapsed_ns(events.began, events.copied)
            meanwhile_ns = max(0, min(free - queued, ended - began - whole_ns))
        # Exclude the time for reading the events from the model's time.
        return RunResult(arrays, input_ns, output_ns + time.perf_counter_ns() - ended, meanwhile_ns)

    def _send(self, name: str, parts: Parts) -> None:
        """Queue the copy of an input to the device."""
        item = self.buffers.inputs[name]
        if self.batched:
            send(self._target, item, parts)
            return
        item.array[...] = parts
        self._target.runtime.copy(item.device, item.pinned, item.row_bytes, HOST_TO_DEVICE, self._target.stream)

    def _fetch(self, name: str, rows: int) -> Array:
        """Queue the copy of an output from the device; the values are valid after waiting for the stream."""
        item = self.buffers.outputs[name]
        runtime, stream = self._target.runtime, self._target.stream
        shape = (rows, *item.array.shape[1:]) if self.batched else item.array.shape
        lent = self.buffers.pools[name].take(shape, item.spec.dtype)
        if lent is not None:
            address, array = lent
            runtime.copy(address, item.device, rows * item.row_bytes, DEVICE_TO_HOST, stream)
            return array
        runtime.copy(item.pinned, item.device, rows * item.row_bytes, DEVICE_TO_HOST, stream)
        runtime.synchronize(stream)
        return (item.array[:rows] if self.batched else item.array).copy()

    def _queue(self, plan: SizePlan) -> None:
        """Queue the copies and the run of one size."""
        runtime, stream = self._target.runtime, self._target.stream
        for item in self.buffers.inputs.values():
            runtime.copy(item.device, item.pinned, plan.rows * item.row_bytes, HOST_TO_DEVICE, stream)
        self._run_bound(plan)
        for item in self.buffers.outputs.values():
            runtime.copy(item.pinned, item.device, plan.rows * item.row_bytes, DEVICE_TO_HOST, stream)

    def _run_bound(self, plan: SizePlan) -> None:
        self._session.run_with_iobinding(plan.binding, self._options)


def _ignore(_event: int) -> None:
    """Record no event."""
