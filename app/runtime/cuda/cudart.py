"""Binding to the CUDA runtime library of onnxruntime, by ctypes.

See docs/decisions/0032-cuda-runtime-through-ctypes.md.
See docs/decisions/0036-ask-cuda-whether-it-is-lost.md.
"""

import ctypes
import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime as ort

from app.runtime.tensors import Array

log = logging.getLogger(__name__)

HOST_TO_DEVICE, DEVICE_TO_HOST, DEVICE_TO_DEVICE = 1, 2, 3  # cudaMemcpyKind
_PORTABLE = 1  # cudaHostAllocPortable: for every device
_NON_BLOCKING = 1  # cudaStreamNonBlocking
_RELAXED = 2  # cudaStreamCaptureModeRelaxed
_MEMCPY_NODE, _HOST_NODE = 1, 3  # cudaGraphNodeType
_PROPERTIES_BYTES = 16 * 1024  # larger than cudaDeviceProp in any version, which starts with the name
_NAME_BYTES = 256

Address = ctypes.c_void_p


class CudaError(Exception):
    """A call of the CUDA runtime failed."""


class _MemcpyParams(ctypes.Structure):
    """cudaMemcpy3DParms."""

    _fields_ = (
        ("source_array", ctypes.c_void_p),
        ("source_position", ctypes.c_size_t * 3),
        ("source", ctypes.c_void_p),
        ("source_layout", ctypes.c_size_t * 3),
        ("target_array", ctypes.c_void_p),
        ("target_position", ctypes.c_size_t * 3),
        ("target", ctypes.c_void_p),
        ("target_layout", ctypes.c_size_t * 3),
        ("extent", ctypes.c_size_t * 3),
        ("kind", ctypes.c_int),
    )


@dataclass(frozen=True)
class Copy:
    """A copy in a graph: addresses, and one of the kinds above."""

    source: int
    target: int
    kind: int


@dataclass(frozen=True)
class Gpu:
    """A device with its name, memory and the CUDA versions of driver and runtime."""

    id: int
    name: str
    free_bytes: int
    total_bytes: int
    driver_version: str
    runtime_version: str


class CudaRuntime:
    """The functions of the runtime under plain names; addresses, streams and graphs are integers.

    Every method raises ``CudaError`` if the runtime reports an error.

    Attributes:
        lost: The reason why CUDA is unusable in this process, or None.
        several: Whether a device other than the first was used, so a thread's current device may be any.
    """

    def __init__(self, waiting: Any, quick: Any) -> None:
        """Load the library twice: ``waiting`` releases Python's lock around a call, ``quick`` keeps it."""
        self.lost: str | None = None
        self.several = False
        self._waiting = waiting
        self._quick = quick
        waiting.cudaGetErrorString.restype = ctypes.c_char_p
        for library in (waiting, quick):
            library.cudaMemcpyAsync.argtypes = [Address, Address, ctypes.c_size_t, ctypes.c_int, Address]
            library.cudaGraphLaunch.argtypes = [Address, Address]
            library.cudaStreamSynchronize.argtypes = [Address]
            library.cudaEventDestroy.argtypes = [Address]
            library.cudaEventRecord.argtypes = [Address, Address]
            library.cudaEventElapsedTime.argtypes = [ctypes.POINTER(ctypes.c_float), Address, Address]
            library.cudaStreamBeginCapture.argtypes = [Address, ctypes.c_int]
            library.cudaStreamEndCapture.argtypes = [Address, ctypes.POINTER(Address)]
            library.cudaGraphDestroy.argtypes = [Address]
            library.cudaGraphExecDestroy.argtypes = [Address]
            library.cudaGraphInstantiate.argtypes = [ctypes.POINTER(Address), Address, ctypes.c_ulonglong]
            library.cudaGraphGetNodes.argtypes = [Address, ctypes.POINTER(Address), ctypes.POINTER(ctypes.c_size_t)]
            library.cudaGraphNodeGetType.argtypes = [Address, ctypes.POINTER(ctypes.c_int)]
            library.cudaGraphMemcpyNodeGetParams.argtypes = [Address, ctypes.POINTER(_MemcpyParams)]
            library.cudaFree.argtypes = [Address]
            library.cudaFreeHost.argtypes = [Address]
            library.cudaMalloc.argtypes = [ctypes.POINTER(Address), ctypes.c_size_t]
            library.cudaHostAlloc.argtypes = [ctypes.POINTER(Address), ctypes.c_size_t, ctypes.c_uint]

    def _check(self, code: int, call: str) -> None:
        if code:
            self._waiting.cudaGetLastError()  # clears the error
            reason = self._waiting.cudaGetErrorString(code).decode()
            raise CudaError(f"{call} failed: {reason} (CUDA error {code})")

    def device_count(self) -> int:
        """Number of devices visible to this process."""
        count = ctypes.c_int()
        self._check(self._waiting.cudaGetDeviceCount(ctypes.byref(count)), "cudaGetDeviceCount")
        return count.value

    def set_device(self, device_id: int) -> None:
        """Select the device of the calling thread."""
        if device_id:
            self.several = True
        self._check(self._quick.cudaSetDevice(device_id), "cudaSetDevice")

    def gpu(self, device_id: int) -> Gpu:
        """Name, memory and versions of a device."""
        self.set_device(device_id)
        properties = ctypes.create_string_buffer(_PROPERTIES_BYTES)
        name = "cudaGetDeviceProperties_v2" if hasattr(self._waiting, "cudaGetDeviceProperties_v2") else None
        self._check(getattr(self._waiting, name or "cudaGetDeviceProperties")(properties, device_id), "device name")
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        self._check(self._waiting.cudaMemGetInfo(ctypes.byref(free), ctypes.byref(total)), "cudaMemGetInfo")
        versions = []
        for call in ("cudaDriverGetVersion", "cudaRuntimeGetVersion"):
            number = ctypes.c_int()
            self._check(getattr(self._waiting, call)(ctypes.byref(number)), call)
            versions.append(f"{number.value // 1000}.{number.value % 1000 // 10}")
        gpu_name = properties.raw[:_NAME_BYTES].split(b"\0")[0].decode(errors="replace")
        return Gpu(device_id, gpu_name, free.value, total.value, *versions)

    def make_stream(self) -> int:
        """Create a stream that does not wait for the default stream."""
        stream = Address()
        self._check(self._waiting.cudaStreamCreateWithFlags(ctypes.byref(stream), _NON_BLOCKING), "making a stream")
        return stream.value or 0

    def device_memory(self, size: int) -> int:
        """Allocate memory on the device of the calling thread."""
        address = Address()
        self._check(self._waiting.cudaMalloc(ctypes.byref(address), size), f"allocating {size:,} bytes of the device")
        return address.value or 0

    def pinned_memory(self, size: int) -> int:
        """Allocate page-locked host memory, which the device can copy from and to directly."""
        address = Address()
        self._check(
            self._waiting.cudaHostAlloc(ctypes.byref(address), size, _PORTABLE), f"allocating {size:,} pinned bytes"
        )
        return address.value or 0

    def free(
        self,
        device: Sequence[int] = (),
        pinned: Sequence[int] = (),
        graphs: Sequence[int] = (),
        events: Sequence[int] = (),
    ) -> None:
        """Free memory, graphs and events; ignore errors, because the end of the process frees them too."""
        for graph in graphs:
            self._waiting.cudaGraphExecDestroy(graph)
        for address in device:
            self._waiting.cudaFree(address)
        for address in pinned:
            self._waiting.cudaFreeHost(address)
        for event in events:
            self._waiting.cudaEventDestroy(event)
        self._waiting.cudaGetLastError()

    def copy(self, target: int, source: int, size: int, kind: int, stream: int) -> None:
        """Queue a copy."""
        self._check(self._quick.cudaMemcpyAsync(target, source, size, kind, stream), "a copy")

    def synchronize(self, stream: int) -> None:
        """Wait until all that was queued is done; other threads run meanwhile."""
        self._check(self._waiting.cudaStreamSynchronize(stream), "the run")

    def check_device(self, stream: int) -> None:
        """Check the device after a failed run: set ``lost`` if no later run can succeed.

        The runtime reports an ordinary error once. After an illegal access, a memory error or a lost device, every
        call fails until the process ends, including one that waits for an idle stream.
        """
        try:
            self._waiting.cudaGetLastError()
            self.synchronize(stream)
        except CudaError as error:
            if self.lost is None:
                log.error("CUDA is unusable in this process: %s", error)
            self.lost = str(error)

    def launch(self, graph: int, stream: int) -> None:
        """Launch a graph (cudaGraphLaunch)."""
        code = self._quick.cudaGraphLaunch(graph, stream)
        if code:
            self._check(code, "launching the graph")

    def make_event(self) -> int:
        """Create an event."""
        event = Address()
        self._check(self._waiting.cudaEventCreate(ctypes.byref(event)), "making an event")
        return event.value or 0

    def record(self, event: int, stream: int) -> None:
        """Record an event on the stream (cudaEventRecord)."""
        self._check(self._quick.cudaEventRecord(event, stream), "recording an event")

    def elapsed_ns(self, start: int, end: int) -> int:
        """Device time between two completed events, in nanoseconds."""
        ms = ctypes.c_float()
        self._check(self._quick.cudaEventElapsedTime(ctypes.byref(ms), start, end), "reading an event")
        return int(1e6 * ms.value)

    def capture(self, stream: int, work: Callable[[], None]) -> int:
        """Capture the operations that ``work`` queues on a stream, without running them.

        Returns:
            The graph, to be instantiated and then destroyed.
        """
        self._check(self._waiting.cudaStreamBeginCapture(stream, _RELAXED), "beginning a capture")
        graph = Address()
        try:
            work()
        except BaseException:
            self._waiting.cudaStreamEndCapture(stream, ctypes.byref(graph))
            if graph.value:
                self._waiting.cudaGraphDestroy(graph)
            self._waiting.cudaGetLastError()
            raise
        self._check(self._waiting.cudaStreamEndCapture(stream, ctypes.byref(graph)), "ending the capture")
        return graph.value or 0

    def instantiate(self, graph: int) -> int:
        """Instantiate a graph, ready to be launched."""
        executable = Address()
        self._check(self._waiting.cudaGraphInstantiate(ctypes.byref(executable), graph, 0), "instantiating the graph")
        return executable.value or 0

    def destroy(self, graph: int) -> None:
        """Destroy a captured graph; its instances remain valid."""
        self._check(self._waiting.cudaGraphDestroy(graph), "destroying a graph")

    def host_work(self, graph: int) -> tuple[list[Copy], int, int]:
        """Copy nodes of a graph, number of host callbacks, and number of all nodes."""
        count = ctypes.c_size_t()
        self._check(self._waiting.cudaGraphGetNodes(graph, None, ctypes.byref(count)), "cudaGraphGetNodes")
        nodes = (Address * count.value)()
        self._check(self._waiting.cudaGraphGetNodes(graph, nodes, ctypes.byref(count)), "cudaGraphGetNodes")
        copies, callbacks = [], 0
        for node in nodes:
            kind = ctypes.c_int()
            self._check(self._waiting.cudaGraphNodeGetType(node, ctypes.byref(kind)), "cudaGraphNodeGetType")
            if kind.value == _HOST_NODE:
                callbacks += 1
            elif kind.value == _MEMCPY_NODE:
                found = _MemcpyParams()
                call = self._waiting.cudaGraphMemcpyNodeGetParams(node, ctypes.byref(found))
                self._check(call, "cudaGraphMemcpyNodeGetParams")
                copies.append(Copy(found.source or 0, found.target or 0, found.kind))
        return copies, callbacks, count.value


class Streams:
    """A pool of streams; a stream is never destroyed before the session that used it."""

    def __init__(self, runtime: CudaRuntime) -> None:
        self._runtime = runtime
        self._free: dict[int, list[int]] = {}
        self._lock = threading.Lock()

    def take(self, device_id: int) -> int:
        """Take a stream of a device."""
        with self._lock:
            free = self._free.get(device_id)
            if free:
                return free.pop()
        self._runtime.set_device(device_id)
        return self._runtime.make_stream()

    def give(self, device_id: int, stream: int) -> None:
        """Return a stream to the pool."""
        with self._lock:
            self._free.setdefault(device_id, []).append(stream)


def load_runtime() -> CudaRuntime:
    """Load the CUDA runtime of the version that this onnxruntime was built for.

    Raises:
        CudaError: The library is not found.
    """
    version = str(getattr(ort, "cuda_version", "") or "")
    name = f"libcudart.so.{version.split('.', maxsplit=1)[0]}"
    if not version:
        raise CudaError("this build of onnxruntime names no version of CUDA")
    try:
        return CudaRuntime(ctypes.CDLL(name), ctypes.PyDLL(name))
    except OSError as error:
        raise CudaError(f"{name} can't be loaded: {error}") from None


def view(address: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """View of host memory as an array; the memory must outlive the array."""
    size = dtype.itemsize * int(np.prod(shape, dtype=np.int64))
    memory: Any = (ctypes.c_byte * size).from_address(address)
    array: Array = np.frombuffer(memory, dtype).reshape(shape)
    return array
