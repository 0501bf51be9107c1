"""Select an execution provider before a session is made, and check it afterwards."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Literal

import onnxruntime as ort

from app.errors import DeviceError
from app.runtime.cuda.buffers import Bodies
from app.runtime.cuda.cudart import CudaError, CudaRuntime, Gpu, Streams, load_runtime
from app.runtime.external_data import external_files
from app.runtime.placement import RECORD
from app.runtime.rewriting import ends_in_maps, lacks_locale, with_locale, without_maps
from app.runtime.session_choices import AS_IT_COMES, SessionChoices
from app.system.files import read_regular

_FATAL = 4  # severity of onnxruntime: lower ones also arrive as exceptions, and its own log can block
CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
ARENAS = {"next_power_of_two": "kNextPowerOfTwo", "same_as_requested": "kSameAsRequested"}


@dataclass(frozen=True)
class CudaOptions:
    """Options for CUDA.

    Attributes:
        device_id: The device, numbered among the visible devices.
        graphs: Whether runs may be captured as CUDA graphs.
        tf32: Whether float32 products may be computed in TF32.
        memory_limit_bytes: Limit of one model's arena; None for all of the device memory.
        arena: Growth policy of an arena.
    """

    device_id: int = 0
    graphs: bool = True
    tf32: bool = False
    memory_limit_bytes: int | None = None
    arena: Literal["next_power_of_two", "same_as_requested"] = "next_power_of_two"

    def provider_options(self, stream: int | None = None) -> dict[str, str]:
        """The options of onnxruntime's CUDA provider; the session queues its work on ``stream``."""
        options = {
            "device_id": str(self.device_id),
            # The default of onnxruntime is TF32, with errors of 3e-4 of the largest output.
            "use_tf32": "1" if self.tf32 else "0",
            "arena_extend_strategy": ARENAS[self.arena],
        }
        if self.memory_limit_bytes is not None:
            options["gpu_mem_limit"] = str(self.memory_limit_bytes)
        if stream is not None:
            options["user_compute_stream"] = str(stream)
        return options


@dataclass(frozen=True)
class Device:
    """The requested device (``auto``, ``cpu``, ``cuda``), the available one, and the reason for a difference.

    Attributes:
        cuda: CUDA options, if CUDA is available.
        runtime, streams: For runs on CUDA from fixed buffers; None if ``runtime_problem`` is set.
        bodies: Pinned memory for long request bodies; None if it cannot be allocated.
        count: Number of CUDA devices that the process sees; None if unknown.
    """

    requested: str
    providers: tuple[str, ...]
    reason: str | None = None
    cuda: CudaOptions = field(default_factory=CudaOptions)
    runtime: CudaRuntime | None = field(default=None, compare=False)
    streams: Streams | None = field(default=None, compare=False)
    runtime_problem: str | None = field(default=None, compare=False)
    bodies: Bodies | None = field(default=None, compare=False)
    count: int | None = field(default=None, compare=False)

    def gpu(self) -> Gpu | None:
        """The device as CUDA reports it now; None without a device, or if it does not answer."""
        if self.runtime is None:
            return None
        try:
            return self.runtime.gpu(self.cuda.device_id)
        except CudaError:
            return None

    @property
    def has_cuda(self) -> bool:
        """Whether sessions are opened on CUDA."""
        return CUDA in self.providers

    def on_cuda(self, device_id: int) -> "Device":
        """A copy for another CUDA device, without a fallback to the CPU."""
        return replace(self, requested="cuda", cuda=replace(self.cuda, device_id=device_id))

    def without_tf32(self) -> "Device":
        """A copy of the device that computes float32 without TF32."""
        return replace(self, cuda=replace(self.cuda, tf32=False))


def choose_device_id(setting: str, count: int | None, slot: int) -> int:
    """The device of one worker: workers take the devices of the setting in turn.

    Args:
        setting: ``all``, or numbers such as ``0,2``.
        count: Number of visible devices; None if unknown.
        slot: Number of the worker, from 0.

    Raises:
        DeviceError: The setting names a device that does not exist.
    """
    if setting == "all":
        return slot % (count or 1)
    wanted = [int(part) for part in setting.split(",")]
    missing = [number for number in wanted if count is not None and number >= count]
    if missing:
        there = "none" if not count else "0" if count == 1 else f"0 to {count - 1}"
        raise DeviceError(
            f"cuda_devices={setting} is not available: there is no device {missing[0]}; available: {there}"
        )
    return wanted[slot % len(wanted)]


def find_device(requested: str, cuda: CudaOptions | None = None, devices: str = "0", slot: int = 0) -> Device:
    """Translate the settings to a list of execution providers.

    Args:
        requested: ``auto``, ``cpu`` or ``cuda``.
        cuda: CUDA options; the device is chosen here.
        devices, slot: See ``choose_device_id``.

    Raises:
        DeviceError: CUDA is requested, but this build of onnxruntime does not have it.
    """
    if requested == "cpu":
        return Device(requested, (CPU,))
    available = ort.get_available_providers()
    if CUDA not in available:
        reason = (
            f"onnxruntime {ort.__version__} has no {CUDA} (it has {', '.join(available)}); "
            "install the extra 'gpu' instead of 'cpu', on a machine with an NVIDIA driver"
        )
        if requested == "cuda":
            raise DeviceError(f"device=cuda is not available: {reason}")
        return Device(requested, (CPU,), reason)
    # Otherwise onnxruntime warns in each session that no plug-in serves CUDA, although the package supports it.
    ort.set_default_logger_severity(_FATAL)
    # The pip packages install the CUDA and cuDNN libraries in folders that the loader does not search.
    preload = getattr(ort, "preload_dlls", None)
    if preload is not None:
        preload()
    runtime, problem, count = None, None, None
    try:
        runtime = load_runtime()
        count = runtime.device_count()
    except CudaError as error:
        runtime, problem = None, str(error)
    try:
        chosen = replace(cuda or CudaOptions(), device_id=choose_device_id(devices, count, slot))
    except DeviceError as error:
        if requested == "cuda":
            raise
        return Device(requested, (CPU,), str(error))
    if runtime is None:
        return Device(requested, (CUDA, CPU), None, chosen, runtime_problem=problem)
    bodies = Bodies(runtime, chosen.device_id)
    return Device(requested, (CUDA, CPU), None, chosen, runtime, Streams(runtime), bodies=bodies, count=count)


def open_session(
    path: str, device: Device, num_threads: int, stream: int | None = None, choices: SessionChoices = AS_IT_COMES
) -> tuple[ort.InferenceSession, str | None]:
    """Open a session on the device, and read back its actual providers.

    A model that onnxruntime cannot load unchanged, or that ends in a sequence of maps, is rewritten in memory.

    Args:
        path: Path of the model.
        device: See ``find_device``.
        num_threads: Threads of the runtime's pool, for nodes on the CPU.
        stream: CUDA stream of the session.
        choices: Session options from the model's settings.

    Returns:
        The session, and the reason why ``auto`` fell back to the CPU (None if it did not).

    Raises:
        DeviceError: CUDA is requested, but the session did not get it.
        ValueError: A provider or library that the model's settings name is not usable.
    """
    open_source = partial(_open, device=device, num_threads=num_threads, stream=stream, choices=choices, path=path)
    content = None
    try:
        session, reason = open_source(path)
    except Exception as error:
        if not lacks_locale(error):
            raise
        content = with_locale(read_regular(Path(path)))
        session, reason = open_source(content)
    if ends_in_maps(session):
        del session
        return open_source(without_maps(content or read_regular(Path(path))))
    return session, reason


def _open(
    source: str | bytes, *, path: str, device: Device, num_threads: int, stream: int | None, choices: SessionChoices
) -> tuple[ort.InferenceSession, str | None]:
    options = ort.SessionOptions()
    # By default onnxruntime sizes its pool by the host's cores and pins threads, ignoring the cgroup and the CPU mask.
    options.intra_op_num_threads = num_threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = _FATAL
    options.add_session_config_entry(RECORD, "1")
    choices.apply(options)
    take_files = getattr(options, "add_external_initializers_from_files_in_memory", None)
    files = external_files(Path(path)) if callable(take_files) else {}
    if callable(take_files) and files:  # older versions of onnxruntime memory-map them
        take_files(list(files), list(files.values()), [len(content) for content in files.values()])
    if choices.providers:
        return choices.open(source, options), None
    if CUDA not in device.providers:
        return _session(source, options, [CPU]), device.reason
    why = ""
    try:
        session = _session(source, options, [(CUDA, device.cuda.provider_options(stream)), CPU])
        if CUDA in session.get_providers():
            return session, None
    except Exception as error:  # noqa: BLE001 - onnxruntime raises many kinds; with CUDA any of them can occur
        why = f": {error}"
    reason = f"{CUDA} could not be started{why}; check the NVIDIA driver and the CUDA and cuDNN libraries"
    if device.requested == "cuda":
        raise DeviceError(f"device=cuda is not available: {reason}")
    return _session(source, options, [CPU]), reason


def _session(source: str | bytes, options: ort.SessionOptions, providers: Sequence[object]) -> ort.InferenceSession:
    session = ort.InferenceSession(source, options, providers=providers)
    session.disable_fallback()
    return session
