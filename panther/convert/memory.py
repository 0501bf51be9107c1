"""Limits of a conversion's memory: the caller's, or half of the free memory.

See docs/decisions/0084-calibration-in-groups.md.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch

# share of the free memory for statistics; the rest is for activations and the new layers
_SHARE = 0.5
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]I?)?B?\s*", re.IGNORECASE)
_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")


def parse_size(value: int | str | None, name: str = "memory") -> int | None:
    """Bytes of a number or of a text such as ``"8GB"`` (10⁹) or ``"8GiB"`` (2³⁰).

    Raises:
        ValueError: it is neither, or below 1.
    """
    if value is None:
        return None
    found = _SIZE.fullmatch(value) if isinstance(value, str) else None
    if isinstance(value, bool) or not isinstance(value, int | str) or (isinstance(value, str) and found is None):
        raise ValueError(f'{name} ({value!r}) must be bytes as an integer, or a text such as "8GB" or "512MiB"')
    size = value if found is None else int(float(found[1]) * _UNITS[(found[2] or "").upper()])
    if not isinstance(size, int) or size < 1:
        raise ValueError(f"{name} ({value!r}) must be at least 1 byte")
    return size


def allowed(device: torch.device, memory: int | None) -> float:
    """Bytes that the statistics of layers on a device may take; infinite for a device of unknown memory."""
    if memory is not None:
        return memory
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        # torch's cached but unused memory is free too
        free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return _SHARE * free
    available = available_memory() if device.type == "cpu" else None
    return float("inf") if available is None else _SHARE * available


def available_memory() -> int | None:
    """Bytes that a process may still take without swapping, within the limit of its container; None if unknown."""
    found = [size for size in (_of_machine(), _of_container()) if size is not None]
    return min(found) if found else None


def _of_machine() -> int | None:
    try:
        line = next(line for line in _MEMINFO.read_text().splitlines() if line.startswith("MemAvailable:"))
        return int(line.split()[1]) * 1024
    except (OSError, StopIteration, ValueError):
        return None


def _of_container() -> int | None:
    """Free bytes by the container's root cgroup (v2); reclaimable file pages count as free."""
    try:
        limit = int((_CGROUP / "memory.max").read_text())
        used = int((_CGROUP / "memory.current").read_text())
        stat = dict(line.split() for line in (_CGROUP / "memory.stat").read_text().splitlines())
        return max(0, limit - used + int(stat.get("inactive_file", 0)))
    except (OSError, ValueError):
        # no container, or no limit ("max")
        return None
