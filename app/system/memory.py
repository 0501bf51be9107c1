"""Resident memory of the process, and the message for lack of memory."""

import ctypes
import sys
from pathlib import Path

_STATUS = Path("/proc/self/status")
_MEMINFO = Path("/proc/meminfo")
_CGROUPS = (
    (Path("/sys/fs/cgroup"), "memory.max", "memory.current", "inactive_file"),
    (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)
_SHORT = (
    "bad_alloc", "BFCArena", "Failed to allocate memory", "MemoryError", "Unable to allocate", "Cannot allocate memory",
    "out of memory", "ALLOC_FAILED",
)  # fmt: skip


_NO_DESCRIPTORS = ("Too many open files", "system error number 24")


def is_transient(text: str) -> bool:
    """Whether an error says that memory or file descriptors were short, so that it may go well another time."""
    return is_short(text) or any(word in text for word in _NO_DESCRIPTORS)


def is_short(text: str) -> bool:
    """Whether an error says that memory was short; the runtime gives no other sign of it than its words."""
    return any(word in text for word in _SHORT)


def resident_bytes() -> int | None:
    """Private resident memory of the process in bytes, or None if the kernel does not report it.

    Pages of program files are left out: they are shared, and come in whenever code is first run.
    """
    try:
        fields = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines() if ":" in line)
        return 1024 * int(fields["RssAnon"].split()[0])
    except (OSError, KeyError, ValueError):
        return None


def available_bytes() -> int | None:
    """Bytes that a process can still have: the machine's, limited by the control group; None where that is unknown."""
    found = []
    try:
        fields = dict(line.split(":", 1) for line in _MEMINFO.read_text().splitlines())
        found.append(1024 * int(fields["MemAvailable"].split()[0]))
    except (OSError, KeyError, ValueError):
        pass
    for folder, limit, usage, reclaimable in _CGROUPS:
        try:
            counts = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            used = int((folder / usage).read_text()) - int(counts.get(reclaimable, 0))
            found.append(max(0, int((folder / limit).read_text()) - used))
        except (OSError, ValueError):  # no such group, or 'max'
            continue
    return min(found, default=None)


def data_limit() -> int | None:
    """Bytes of data that the process may have by ``RLIMIT_DATA``; None where it has no such limit."""
    if sys.platform == "win32":
        return None
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_DATA)
    return None if soft == resource.RLIM_INFINITY else soft


def growth(before: int | None, after: int | None) -> int | None:
    """By how much it grew; None where that is unknown, or where other things shrank meanwhile by more."""
    if before is None or after is None or after <= before:
        return None
    return after - before


def trim_memory() -> None:
    """Return freed memory to the system (malloc_trim); glibc would keep most of a model."""
    if sys.platform.startswith("linux"):
        malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # other C libraries have none
        if malloc_trim is not None:
            malloc_trim(0)
