"""Atomic replacement of files and folders: a reader sees the old or the new state."""

import contextlib
import ctypes
import os
import shutil
from functools import cache
from pathlib import Path
from typing import Any

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


def put_in_place(fresh: Path, target: Path, trash: Path) -> None:
    """Move a file or folder to a path; an existing one moves to ``trash``.

    Linux exchanges both in one step. Without support by the file system, a folder is missing between two calls.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    if not os.path.lexists(target):
        fresh.rename(target)
    elif _exchange(fresh, target):
        fresh.rename(trash)
    else:
        target.rename(trash)
        fresh.rename(target)


def discard(path: Path) -> None:
    """Delete a file or folder; on failure, leave it for the next time."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two paths in one step. Return whether that succeeded."""
    rename = _renameat2()
    if rename is None:
        return False
    done: int = rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE)
    return done == 0


@cache
def _renameat2() -> Any:
    """The function of the C library; None if it is not available."""
    try:
        function = ctypes.CDLL(None).renameat2
    except (OSError, AttributeError):
        return None
    function.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)
    return function
