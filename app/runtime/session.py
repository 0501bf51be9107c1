"""An onnxruntime session and its actual execution providers."""

import weakref
from pathlib import Path
from typing import Any

from app.runtime.device import Device, open_session
from app.runtime.placement import Node, find_placement
from app.runtime.session_choices import AS_IT_COMES, SessionChoices


class Session:
    """An open session; its CUDA stream goes back to the device's pool with it.

    Args:
        path: of the model.
        device: to open it on.
        num_threads: of the runtime's pool, for nodes that run on the CPU.
        choices: what the model's own settings say.

    Attributes:
        ort: the session of onnxruntime.
        stream: of CUDA; None without one.
        device_reason: why it runs on the CPU although ``auto`` prefers CUDA, or None.
        providers: execution providers, as read back from the session.
        placement: which provider runs which node; None where this onnxruntime does not report it.

    Raises:
        DeviceError: see ``open_session``.
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
        """After a run that failed: find out whether the device is lost."""
        if self.device.runtime is not None and self.stream is not None:
            self.device.runtime.check_device(self.stream)
