"""Garbage collector settings for a serving process, and process limits."""

import ctypes
import gc
import signal
import sys

_PR_SET_PDEATHSIG = 1
SPARE_FILES = 256
"""Open files of a process besides its connections: models, libraries, other workers."""


def end_with_parent() -> None:
    """Make the kernel end this process when its parent dies, so no worker keeps the port."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def freeze_collector() -> None:
    """Freeze loaded objects out of the garbage collector (gc.freeze), and collect less often."""
    gc.collect()
    gc.freeze()
    # Requests leave no reference cycles: collect less often than after every few requests.
    gc.set_threshold(20_000, 20, 20)


def raise_file_limit(connections: int) -> str | None:
    """Raise the limit of open files for the connections. Return the reason if that fails, or None."""
    if sys.platform == "win32":
        return None
    import resource

    wanted = connections + SPARE_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return None
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    if allowed < wanted:
        return f"max_connections ({connections}) requires {wanted} open files; the limit is {allowed} (ulimit -n)"
    return None
