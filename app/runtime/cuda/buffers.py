"""Fixed buffers for a model's tensors on CUDA: pinned host memory, and device memory.

See docs/decisions/0035-pinned-bodies-and-overlapped-encoding.md.
"""

import logging
import threading
import weakref
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from app.runtime.cuda.cudart import HOST_TO_DEVICE, CudaError, CudaRuntime, view
from app.runtime.signature import Signature
from app.runtime.tensors import Array, TensorSpec

log = logging.getLogger(__name__)

_KIB = 1024
_SHORT = 64 * _KIB  # up to this size, copying a body is as fast as reserving pinned memory
_BODIES = ((256 * _KIB, 64), (1088 * _KIB, 16), (4160 * _KIB, 4))  # bytes per piece, and pieces per block
_MOST_BLOCKS = 8
_MOST_LOANS = 16
_MOST_LOAN_BYTES = 64 * 1024 * 1024


@dataclass
class Owned:
    """Resources to free at shutdown."""

    device: list[int] = field(default_factory=list)
    pinned: list[int] = field(default_factory=list)
    graphs: list[int] = field(default_factory=list)
    events: list[int] = field(default_factory=list)


def give_back(runtime: CudaRuntime, device_id: int, owned: Owned) -> None:
    """Free owned resources."""
    try:
        runtime.set_device(device_id)
    except CudaError as error:
        log.warning("cannot free memory of device %d: %s", device_id, error)
        return
    runtime.free(owned.device, owned.pinned, owned.graphs, owned.events)


@dataclass(frozen=True)
class CudaTarget:
    """Device and stream of a session on CUDA.

    Attributes:
        runtime: The CUDA runtime.
        device_id: The CUDA device.
        stream: The stream of the session.
        bodies: Pinned memory for request bodies; large inputs in it are copied to the device without a host copy.
    """

    runtime: CudaRuntime
    device_id: int
    stream: int
    bodies: "Bodies | None" = None


class Buffer:
    """The buffer of one tensor, sized for the largest batch.

    Attributes:
        spec: The tensor.
        array: View of the pinned memory; its first axis is the largest batch if the model is batched.
        pinned, device: Addresses.
        row_bytes: Size of one row, or of the whole tensor without batching.
    """

    def __init__(self, spec: TensorSpec, max_rows: int | None, runtime: CudaRuntime, stream: int, owned: Owned) -> None:
        rest = tuple(size or 1 for size in (spec.shape if max_rows is None else spec.shape[1:]))
        self.spec = spec
        self.row_bytes = spec.dtype.itemsize * int(np.prod(rest, dtype=np.int64))
        self.nbytes = self.row_bytes * (max_rows or 1)
        owned.pinned.append(runtime.pinned_memory(self.nbytes))
        owned.device.append(runtime.device_memory(self.nbytes))
        self.pinned, self.device = owned.pinned[-1], owned.device[-1]
        self.array = view(self.pinned, rest if max_rows is None else (max_rows, *rest), spec.dtype)
        self.fill(0)
        # Padding rows keep the contents of the buffer.
        runtime.copy(self.device, self.pinned, self.nbytes, HOST_TO_DEVICE, stream)
        runtime.synchronize(stream)

    def fill(self, byte: int) -> None:
        """Fill the pinned memory."""
        view(self.pinned, (self.nbytes,), np.dtype(np.uint8))[:] = byte


class BufferSet:
    """The buffers of all tensors of a model, and the pools that large outputs are copied to.

    Args:
        signature: Tensors of the model.
        max_rows: Size of the largest batch; None for a model without batching.
        target: The device and stream.
        owned: Records the resources to free.
    """

    def __init__(self, signature: Signature, max_rows: int | None, target: CudaTarget, owned: Owned) -> None:
        def buffer(spec: TensorSpec) -> Buffer:
            return Buffer(spec, max_rows, target.runtime, target.stream, owned)

        self.batched = max_rows is not None
        self.inputs = {spec.name: buffer(spec) for spec in signature.inputs}
        self.outputs = {spec.name: buffer(spec) for spec in signature.outputs}
        self.pools = {
            name: LoanPool(item.nbytes, target.runtime, target.device_id) for name, item in self.outputs.items()
        }
        everything = (*self.inputs.values(), *self.outputs.values())
        self.nbytes = sum(item.nbytes for item in everything)
        self.row_bytes = sum(item.row_bytes for item in everything)


class Loan:
    """Pinned memory of an array; it returns to its pool when the last array that uses it is deleted."""

    def __init__(self, pool: "LoanPool | Bodies", address: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self.__array_interface__ = {"version": 3, "data": (address, False), "shape": shape, "typestr": dtype.str}
        self._pool = pool
        self._address = address

    def __del__(self) -> None:
        self._pool.take_back(self._address)


class LoanPool:
    """Pinned memory for results, lent until they have been read.

    Args:
        size: Bytes of each loan.
        runtime, device_id: Device that copies into the memory.
    """

    def __init__(self, size: int, runtime: CudaRuntime, device_id: int) -> None:
        self._size = size
        self._runtime = runtime
        self._most = max(1, min(_MOST_LOANS, _MOST_LOAN_BYTES // size))
        self._free: list[int] = []
        self._lock = threading.Lock()
        self._owned = Owned()
        weakref.finalize(self, give_back, runtime, device_id, self._owned)

    def take(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> tuple[int, Array] | None:
        """An address and an array over it; None if too many are already lent."""
        with self._lock:
            if self._free:
                address = self._free.pop()
            elif len(self._owned.pinned) < self._most:
                address = self._runtime.pinned_memory(self._size)
                self._owned.pinned.append(address)
            else:
                return None
        return address, np.asarray(Loan(self, address, shape, dtype))

    def take_back(self, address: int) -> None:
        """Return memory to the pool."""
        self._free.append(address)


class Bodies:
    """Pinned memory for long request bodies, copied to the device without a further copy.

    The pool is empty at first. A body without a free piece of its size uses ordinary memory, and a thread allocates a
    block of such pieces for later bodies. A piece becomes free when the last array over it is deleted, so none is
    reused while a run reads it, even if its client has disconnected. Every device may copy from it.

    Args:
        runtime, device_id: Device that copies from the memory.
    """

    def __init__(self, runtime: CudaRuntime, device_id: int) -> None:
        self._runtime = runtime
        self._device_id = device_id
        self._owned = Owned()
        self._free: dict[int, list[int]] = {size: [] for size, _ in _BODIES}
        self._blocks: list[tuple[int, int, int]] = []  # start address, end address, bytes of a piece
        self._growing = threading.Lock()
        weakref.finalize(self, give_back, runtime, device_id, self._owned)

    @property
    def nbytes(self) -> int:
        """Bytes that are allocated."""
        return sum(end - start for start, end, _ in self._blocks)

    def take(self, length: int) -> memoryview | None:
        """Reserve memory for a body, with undefined contents; None if none is free or the body is too short."""
        if length <= _SHORT:
            return None
        for size, count in _BODIES:
            if length <= size:
                free = self._free[size]
                if free:
                    return np.asarray(Loan(self, free.pop(), (length,), np.dtype(np.uint8))).data
                self._grow(size, count)
                return None
        return None

    def _grow(self, size: int, count: int) -> None:
        """Allocate a block of pieces, in a thread since it takes milliseconds, and one block at a time."""
        if len(self._blocks) >= _MOST_BLOCKS or not self._growing.acquire(blocking=False):
            return
        try:
            threading.Thread(target=self._allocate, args=(size, count), name="pinned-bodies", daemon=True).start()
        except RuntimeError:  # no thread can be started
            self._growing.release()

    def _allocate(self, size: int, count: int) -> None:
        try:
            self._runtime.set_device(self._device_id)
            start = self._runtime.pinned_memory(size * count)
        except CudaError as error:
            log.warning("no further pinned memory for request bodies: %s", error)
            return  # permanently: the lock is not released
        self._owned.pinned.append(start)
        self._blocks.append((start, start + size * count, size))
        self._free[size] += [start + size * number for number in range(count)]
        self._growing.release()

    def take_back(self, address: int) -> None:
        """Return a piece to the pool."""
        for start, end, size in self._blocks:
            if start <= address < end:
                self._free[size].append(address)

    def address(self, array: Array) -> int | None:
        """Address of an array in the pinned memory, or None if it is elsewhere."""
        address: int = array.__array_interface__["data"][0]
        inside = any(start <= address < end for start, end, _ in self._blocks)
        return address if inside and array.flags.c_contiguous else None
