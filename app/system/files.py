"""Read files from other users: only regular files, without blocking, and within a size limit."""

import errno
import os
import stat
from pathlib import Path

_KINDS = {
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
}


def require_regular(path: Path) -> os.stat_result:
    """Check that a path is a regular file, or a link to one, without opening it.

    Raises:
        OSError: It is something else, or is missing; ``strerror`` gives the reason.
    """
    return _regular(path.stat(), path)


def read_regular(path: Path, most_bytes: int | None = None) -> bytes:
    """Read a whole file.

    Args:
        path: Path of the file; a FIFO, a device or a socket is refused without blocking.
        most_bytes: The size limit; None for none.

    Raises:
        OSError: It is unreadable, not a regular file, too large, or grows meanwhile; ``strerror`` gives the reason.
    """
    require_regular(path)
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NONBLOCK", 0))
    with os.fdopen(descriptor, "rb") as file:
        size = _regular(os.fstat(descriptor), path).st_size
        if most_bytes is not None and size > most_bytes:
            raise OSError(errno.EFBIG, f"it has {size} bytes; the maximum is {most_bytes}", str(path))
        content = file.read(size)
        if file.read(1):
            raise OSError(errno.EBUSY, "it grows while it is read", str(path))
    return content


def _regular(found: os.stat_result, path: Path) -> os.stat_result:
    if not stat.S_ISREG(found.st_mode):
        kind = _KINDS.get(stat.S_IFMT(found.st_mode), "of an unknown kind")
        raise OSError(errno.EINVAL, f"it is {kind}, not a regular file", str(path))
    return found
