"""Shared libraries of operators, which stay in memory once they are loaded.

onnxruntime unloads a library with the last session that uses it, and not every library survives that: where a program
has imported onnxruntime-extensions 0.15 itself, loading a second copy after the first was unloaded ends the process
(SIGSEGV).
"""

import ctypes
from pathlib import Path
from threading import Lock

_lock = Lock()
_loaded: dict[str, tuple[int, int, int]] = {}


def keep_loaded(path: str) -> None:
    """Load a library for as long as the process runs.

    Raises:
        OSError: it can't be loaded.
        ValueError: the file was replaced after this process loaded it; the loader would return what it was before.
    """
    with _lock:
        found = Path(path).stat()
        identity = found.st_size, found.st_mtime_ns, found.st_ino
        if _loaded.get(path, identity) != identity:
            raise ValueError(
                "the file was replaced after it was loaded; restart the server, or give the new library another path"
            )
        ctypes.CDLL(path)  # which is never unloaded, even where the object is deleted
        _loaded[path] = identity
