"""Garbage collector settings for a serving process, and process limits."""

import ctypes
import gc
import signal
import sys

_PR_SET_PDEATHSIG = 1
SPARE_FILES = 256
"""Open files of a process besides its connections: models, libraries, other workers."""


def end_with_parent() -> None:
    """Make the kernel end this process when its parent dies, so that no worker keeps the port."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def freeze_collector() -> None:
    """Freeze loaded objects out of the garbage collector (gc.freeze), and collect less often."""
    gc.collect()
    gc.freeze()
    # A request leaves no cycles behind: look for them more seldom than after every few requests.
    gc.set_threshold(20_000, 20, 20)


def raise_file_limit(connections: int) -> str | None:
    """Allow as many open files as connections need; why that can't be, or None where it can."""
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
        return f"max_connections ({connections}) needs {wanted} open files; this process may have {allowed} (ulimit -n)"
    return None
