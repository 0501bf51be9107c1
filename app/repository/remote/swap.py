"""Moving files and folders into place, so that a reader sees the old or the new and nothing between."""

import contextlib
import ctypes
import os
import shutil
from functools import cache
from pathlib import Path
from typing import Any

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


def put_in_place(fresh: Path, target: Path, trash: Path) -> None:
    """Move a file or folder to where another may be, which is moved to ``trash``.

    Linux exchanges both in one step. Where the file system can't, a folder is missing for the time of two calls.
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
    """Delete a file or folder, or leave it for the next time."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two paths in one step; whether that could be done."""
    rename = _renameat2()
    if rename is None:
        return False
    done: int = rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE)
    return done == 0


@cache
def _renameat2() -> Any:
    """The function of the C library; None where it has none."""
    try:
        function = ctypes.CDLL(None).renameat2
    except (OSError, AttributeError):
        return None
    function.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)
    return function
