"""A served model: a loaded version with its codec and batcher."""

import logging
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Lock

from app.config.settings import Settings
from app.engine.batcher import Batcher
from app.engine.batching_options import BatchingOptions
from app.engine.codec.model_codec import ModelCodec
from app.engine.instance_batcher import InstanceBatcher
from app.errors import DeviceError, LoadError
from app.repository.model_settings import SETTINGS_FILE, ModelSettings, custom_libraries
from app.repository.placement import devices_of
from app.repository.trial_load import trials
from app.repository.trial_process import Passed, Trial
from app.runtime.device import CPU, CudaOptions, Device, find_device
from app.runtime.model import OnnxModel
from app.runtime.session_choices import SessionChoices, known_providers
from app.system.memory import growth, resident_bytes

log = logging.getLogger(__name__)

_ATTEMPTS = 3
_PATIENCE_S = 1.0
_TRIAL_BYTES_A_SECOND = 32_000_000
"""Assumed speed of reading and preparing a file, for the time limit of its trial; even slow disks are faster."""


@dataclass(frozen=True, slots=True)
class Serving:
    """A served model: model, codec and batcher.

    ``resident_bytes`` is the growth of the process while the model was loaded and warmed up, None if unknown.
    ``settings`` are the settings of the model.
    """

    model: OnnxModel
    codec: ModelCodec
    batcher: Batcher
    resident_bytes: int | None = None
    settings: ModelSettings = field(default_factory=ModelSettings)


class Loader:
    """Loads model files with the server's settings; the device is selected once.

    Args:
        settings: Settings of the server.
        slot: Number of this worker, from 0; the workers take the CUDA devices in turn.

    Attributes:
        device: The available device, or None if the requested one is not available.
        device_problem: The reason why it is not available, or None.
    """

    def __init__(self, settings: Settings, slot: int = 0) -> None:
        self.settings = settings
        self.num_threads = settings.threads()
        self.device: Device | None = None
        self.device_problem: str | None = None
        self._measuring = Lock()
        self._unmeasured = 0  # number of loads that ran during the measured one
        try:
            self.device = find_device(settings.device, _cuda_options(settings), settings.cuda_devices, slot)
        except DeviceError as error:
            self.device_problem = str(error)

    @property
    def lost(self) -> str | None:
        """The reason why no run can succeed in this process, or None."""
        runtime = None if self.device is None else self.device.runtime
        if runtime is None or runtime.lost is None:
            return None
        return f"CUDA is unusable in this process: {runtime.lost}"

    def __call__(self, name: str, version: str, path: Path, own: ModelSettings) -> Serving:
        """Load one version, in a separate process first, and warm it up.

        Args:
            name, version: Name and version of the model.
            path: Path of its file.
            own: Settings of the model, which override the server's.

        Raises:
            LoadError: The file or the device is not usable.
        """
        if self.device is None:
            raise DeviceError(str(self.device_problem))
        folder = path.parents[1]
        libraries = custom_libraries(name, folder, own, allowed=self.settings.allow_custom_ops)
        try:
            providers = known_providers(own.session.providers)
        except ValueError as error:
            raise LoadError(f"model {name!r}: {SETTINGS_FILE}: {error}") from None
        choices = SessionChoices(own.session.graph_optimization, providers, libraries)
        for _ in range(_ATTEMPTS):
            seen = _identity(path)
            passed = self._try(name, version, path, own, choices)
            serving = self._load(name, version, path, own, choices, passed)
            if _identity(path) == seen:
                return serving
        raise LoadError(f"model {name!r} version {version} is not loaded: its files changed during the load")

    def _try(self, name: str, version: str, path: Path, own: ModelSettings, choices: SessionChoices) -> Passed:
        limit_s = self.settings.trial_load_s
        if limit_s == 0 or self.device is None or not sys.platform.startswith("linux"):
            return Passed()
        # A model for CUDA may be too large for the CPU, or unsupported there: its trial only makes a session.
        elsewhere = self._devices(name, own)[0].has_cuda or (choices.providers and choices.providers[0] != CPU)
        max_rows = None if elsewhere else own.max_batch_rows or self.settings.max_batch_rows
        extra_s = sum(size for _, size, _, _ in _identity(path)) // _TRIAL_BYTES_A_SECOND
        trial = Trial(
            name,
            version,
            str(path.absolute()),
            self._threads(name, own),
            max_rows,
            limit_s,
            float(extra_s),
            choices,
            own.batching,
        )
        return trials.run(trial)

    def _devices(self, name: str, own: ModelSettings) -> list[Device]:
        if self.device is None:
            raise DeviceError(str(self.device_problem))
        where = f"model {name!r}"
        if own.session.providers and own.placement.devices is not None:
            raise LoadError(f"{where}: placement.devices and session.providers exclude each other; give one of them")
        try:
            return devices_of(own.placement, self.device)
        except LoadError as error:
            raise LoadError(f"{where}: {error}") from None

    def _threads(self, name: str, own: ModelSettings) -> int:
        """Threads of each instance: the model's own number, or the server's, divided among those on the CPU."""
        if own.session.threads is not None:
            return own.session.threads
        on_cpu = sum(not device.has_cuda for device in self._devices(name, own))
        return self.num_threads // on_cpu or 1 if on_cpu else self.num_threads

    def _load(
        self, name: str, version: str, path: Path, own: ModelSettings, choices: SessionChoices, passed: Passed
    ) -> Serving:
        # Loads run one after another so the memory of each can be measured, unless one takes long.
        measured = self._measuring.acquire(timeout=_PATIENCE_S)
        try:
            beside, before = self._unmeasured, resident_bytes()
            self._unmeasured += not measured
            serving = self._make(name, version, path, own, choices, passed)
            if not measured or self._unmeasured != beside:
                return serving
            return replace(serving, resident_bytes=growth(before, resident_bytes()))
        finally:
            if measured:
                self._measuring.release()

    def _make(
        self, name: str, version: str, path: Path, own: ModelSettings, choices: SessionChoices, passed: Passed
    ) -> Serving:
        if self.device is None:
            raise DeviceError(str(self.device_problem))
        first, *others = self._devices(name, own)
        model = OnnxModel(name, version, path, first, self._threads(name, own), own.batching, choices)
        for device in others:
            model.add_instance(device)
        model.takes_no_rows = passed.takes_no_rows and model.takes_empty
        if model.device_reason is not None and self.device.reason is None:
            log.warning("model %s version %s runs on the CPU, because %s", name, version, model.device_reason)
        max_rows = own.max_batch_rows or self.settings.max_batch_rows
        model.prepare(max_rows)
        options = BatchingOptions(
            max_rows,
            1000 * self.settings.inline_run_us,
            together=own.batching != "off",
            delay_ns=1000 * own.batch_delay_us,
            max_queue_rows=self.settings.max_queue_rows,
            max_queue_bytes=self.settings.max_queue_bytes,
            max_wait_ns=1_000_000 * self.settings.max_queue_ms,
        )
        batcher = InstanceBatcher(model, options) if others else Batcher(model, options, model.instances[0])
        batcher.warm_up()
        return Serving(model, ModelCodec(model, self.settings.max_request_rows), batcher, settings=own)


def _identity(path: Path) -> list[tuple[str, int, int, int]]:
    """Identity of the files of a version, to detect changes."""
    found = []
    try:
        for file in sorted(path.parent.iterdir()):
            status = file.stat()
            found.append((file.name, status.st_size, status.st_mtime_ns, status.st_ino))
    except OSError:  # removed meanwhile: the load reports it
        return []
    return found


def _cuda_options(settings: Settings) -> CudaOptions:
    return CudaOptions(
        graphs=settings.cuda_graphs,
        tf32=settings.cuda_tf32,
        memory_limit_bytes=settings.cuda_memory_limit_bytes,
        arena=settings.cuda_arena,
    )
