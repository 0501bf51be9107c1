"""CUDA devices that the Triton kernels run on, by compute capability and shared memory.

See docs/decisions/0097-tiles-by-device.md.
"""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

# capability and bytes of shared memory a block of the device that the tiles and the limits of use were measured on
MEASURED_MAJOR = 9
MEASURED_SHARED = 227 << 10
# bytes, of those, that the tiles of a program may take, and that leave room for a second program beside it
TILES = 210_000
HALF_TILES = 100_000
# the least: bfloat16 and copies that do not wait from 8.0 on, and 99 KiB, which 8.6, 8.9 and 12.0 have
LEAST_MAJOR = 8
LEAST_SHARED = 99 << 10


@dataclass(frozen=True)
class Device:
    """Properties of a device that decide the tiles.

    Attributes:
        processors: multiprocessors.
        shared_bytes: most shared memory of a block.
        major: first number of the compute capability.
    """

    processors: int
    shared_bytes: int
    major: int

    @property
    def runs_kernels(self) -> bool:
        """Whether the kernels can run."""
        return self.major >= LEAST_MAJOR and self.shared_bytes >= LEAST_SHARED

    @property
    def is_measured(self) -> bool:
        """Whether the measured limits of use hold: capability and shared memory of the device they come from."""
        return self.major >= MEASURED_MAJOR and self.shared_bytes >= MEASURED_SHARED

    @property
    def spare_stages(self) -> int:
        """Stages of a product's loop that take no memory: without wgmma the matrix units read registers."""
        return int(self.major < MEASURED_MAJOR)

    @property
    def tiles_bytes(self) -> int:
        """Shared memory that the tiles of a program may take."""
        return TILES * min(self.shared_bytes, MEASURED_SHARED) // MEASURED_SHARED

    @property
    def half_tiles_bytes(self) -> int:
        """Shared memory of its tiles that leaves room for a second program beside it."""
        return HALF_TILES * min(self.shared_bytes, MEASURED_SHARED) // MEASURED_SHARED


@cache
def device(index: int) -> Device | None:
    """The device of an index; None where the kernels can't run."""
    if torch.version.cuda is None:
        return None
    properties = torch.cuda.get_device_properties(index)
    shared = int(getattr(properties, "shared_memory_per_block_optin", 0))
    found = Device(int(properties.multi_processor_count), shared, int(properties.major))
    return found if found.runs_kernels else None


@cache
def triton_kernels() -> Any:
    """The module of kernels; None where triton is not installed or does not import."""
    if importlib.util.find_spec("triton") is None:
        return None
    try:
        return importlib.import_module("panther.nn.kernels.triton_kernels")
    except ImportError:
        return None
