"""Shared libraries of custom operators, which stay loaded until the process ends.

onnxruntime unloads a library together with the last session that uses it, and some libraries do not survive that: in a
program that imports onnxruntime-extensions 0.15, loading a second copy after the first was unloaded crashes the process
(SIGSEGV).
"""

import ctypes
from pathlib import Path
from threading import Lock

_lock = Lock()
_loaded: dict[str, tuple[int, int, int]] = {}


def keep_loaded(path: str) -> None:
    """Load a library for the rest of the process.

    Raises:
        OSError: The library cannot be loaded.
        ValueError: The file was replaced after this process loaded it; the loader would return the old library.
    """
    with _lock:
        found = Path(path).stat()
        identity = found.st_size, found.st_mtime_ns, found.st_ino
        if _loaded.get(path, identity) != identity:
            raise ValueError(
                "the file was replaced after it was loaded; restart the server, or use another path for the new one"
            )
        ctypes.CDLL(path)  # never unloaded, even after the object is deleted
        _loaded[path] = identity
