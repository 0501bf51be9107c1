"""Memory of the process, and recognition of out-of-memory errors."""

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
    """Whether an error means that memory or file descriptors were short, so a retry may succeed."""
    return is_short(text) or any(word in text for word in _NO_DESCRIPTORS)


def is_short(text: str) -> bool:
    """Whether an error means that memory was short; the runtime signals this only by the message."""
    return any(word in text for word in _SHORT)


def resident_bytes() -> int | None:
    """Private resident memory of the process in bytes, or None if the kernel does not report it.

    Pages of program files are excluded: they are shared, and are loaded when code first runs.
    """
    try:
        fields = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines() if ":" in line)
        return 1024 * int(fields["RssAnon"].split()[0])
    except (OSError, KeyError, ValueError):
        return None


def available_bytes() -> int | None:
    """Memory available to a process: the machine's, limited by the control group; None if unknown."""
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
        except (OSError, ValueError):  # no such group, or the value 'max'
            continue
    return min(found, default=None)


def data_limit() -> int | None:
    """Limit of the process's data by ``RLIMIT_DATA``; None without a limit."""
    if sys.platform == "win32":
        return None
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_DATA)
    return None if soft == resource.RLIM_INFINITY else soft


def growth(before: int | None, after: int | None) -> int | None:
    """Growth since the start; None if unknown, or if other memory shrank by more meanwhile."""
    if before is None or after is None or after <= before:
        return None
    return after - before


def trim_memory() -> None:
    """Return freed memory to the system (malloc_trim); glibc would keep most of it."""
    if sys.platform.startswith("linux"):
        malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # missing in other C libraries
        if malloc_trim is not None:
            malloc_trim(0)
