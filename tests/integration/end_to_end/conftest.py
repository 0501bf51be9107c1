"""A real server process, as `make run` starts it."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@contextlib.contextmanager
def serving(model_dir: Path) -> Iterator[str]:
    """Start `python -m app` on a free port, yield its address once it is ready, stop it by SIGTERM."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PANTHER_")}
    environment |= {"PANTHER_MODEL_DIR": str(model_dir), "PANTHER_PORT": "0"}
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        with log.open("w") as stream:
            process = subprocess.Popen([sys.executable, "-m", "app"], cwd=ROOT, env=environment, stderr=stream)
        try:
            deadline = time.monotonic() + 60
            while "ready: " not in (told := log.read_text()):
                assert process.poll() is None, told
                assert time.monotonic() < deadline, told
                time.sleep(0.05)
            yield re.search(r"listening on (http://127.0.0.1:\d+)", told)[1]
        finally:
            process.terminate()
            status = process.wait(60)
        assert status == 0, log.read_text()


@pytest.fixture(scope="session")
def serve() -> Callable[[Path], AbstractContextManager[str]]:
    """Serves a folder for the time of a with-block and gives its address."""
    return serving


@pytest.fixture(scope="session")
def shipped() -> Iterator[str]:
    """The address of a server of the shipped models."""
    with serving(ROOT / "models") as address:
        yield address
