"""Which execution provider can be had, found out before a session is made and checked after."""

import logging
import os
from dataclasses import dataclass

# onnxruntime reads this when it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime as ort

from app.errors import DeviceError

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Device:
    """What was asked for (``auto``, ``cpu``, ``cuda``), what can be had, and why not more."""

    requested: str
    providers: tuple[str, ...]
    reason: str | None = None


def find_device(requested: str) -> Device:
    """Turn the setting into the list of execution providers to ask for.

    Raises:
        DeviceError: CUDA was asked for and this build of onnxruntime has none.
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
            raise DeviceError(f"device=cuda can't be had: {reason}")
        return Device(requested, (CPU,), reason)
    # The CUDA and cuDNN libraries of the pip packages lie where the loader does not look.
    preload = getattr(ort, "preload_dlls", None)
    if preload is not None:
        preload()
    return Device(requested, (CUDA, CPU))


def open_session(path: str, device: Device, num_threads: int) -> tuple[ort.InferenceSession, str | None]:
    """Make a session on the device and read back what it really runs on.

    Returns:
        The session, and the reason why ``auto`` came down to the CPU (None when it did not).

    Raises:
        DeviceError: CUDA was asked for and the session did not get it.
    """
    options = ort.SessionOptions()
    # Left to itself onnxruntime sizes its pool by the host's cores and pins threads, whatever the cgroup or mask says.
    options.intra_op_num_threads = num_threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    if CUDA not in device.providers:
        session = ort.InferenceSession(path, options, providers=[CPU])
        session.disable_fallback()
        return session, device.reason
    why = ""
    try:
        session = ort.InferenceSession(path, options, providers=list(device.providers))
        session.disable_fallback()
        if CUDA in session.get_providers():
            return session, None
    except Exception as error:  # noqa: BLE001 - onnxruntime raises many kinds; with CUDA it may be any of them
        why = f": {error}"
    reason = f"{CUDA} could not be started{why}; check the NVIDIA driver and the CUDA and cuDNN libraries"
    if device.requested == "cuda":
        raise DeviceError(f"device=cuda can't be had: {reason}")
    session = ort.InferenceSession(path, options, providers=[CPU])
    session.disable_fallback()
    return session, reason
