"""An onnxruntime session and its actual execution providers."""

import weakref
from pathlib import Path
from typing import Any

from app.runtime.device import Device, open_session
from app.runtime.placement import Node, find_placement
from app.runtime.session_choices import AS_IT_COMES, SessionChoices


class Session:
    """An open session; closing it returns its CUDA stream to the device's pool.

    Args:
        path: Path of the model.
        device: Device to open it on.
        num_threads: Threads of the runtime's pool, for nodes on the CPU.
        choices: Session options from the model's settings.

    Attributes:
        ort: The session of onnxruntime.
        stream: The CUDA stream; None without one.
        device_reason: The reason why it runs on the CPU although ``auto`` prefers CUDA, or None.
        providers: Execution providers, as read back from the session.
        placement: Which provider runs which node; None if this onnxruntime does not report it.

    Raises:
        DeviceError: See ``open_session``.
    """

    def __init__(self, path: Path, device: Device, num_threads: int, choices: SessionChoices = AS_IT_COMES) -> None:
        self.device = device
        self.choices = choices
        self.num_threads = num_threads
        self.stream: int | None = None
        if device.streams is not None:
            self.stream = device.streams.take(device.cuda.device_id)
            weakref.finalize(self, device.streams.give, device.cuda.device_id, self.stream)
        self.ort: Any
        self.ort, self.device_reason = open_session(str(path), device, num_threads, self.stream, choices)
        self.providers: list[str] = self.ort.get_providers()
        self.placement: tuple[Node, ...] | None = find_placement(self.ort)

    def check_device(self) -> None:
        """Check after a failed run whether the device is lost."""
        if self.device.runtime is not None and self.stream is not None:
            self.device.runtime.check_device(self.stream)
