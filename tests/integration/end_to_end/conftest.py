"""A real server process, as `make run` starts it."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import httpx
import pytest

ROOT = Path(__file__).parents[3]


@contextlib.contextmanager
def serving(model_dir: Path) -> Iterator[str]:
    """Start `python -m app` on a free port, yield its address once it is ready, stop it by SIGTERM."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PANTHER_")}
    environment |= {"PANTHER_MODEL_DIR": str(model_dir), "PANTHER_PORT": str(port)}
    process = subprocess.Popen(
        [sys.executable, "-m", "app"], cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 30
        while True:
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{address}/health/ready").status_code == 200:
                    break
            assert process.poll() is None, process.stdout.read().decode()
            assert time.monotonic() < deadline, "the server did not become ready in 30 s"
            time.sleep(0.05)
        yield address
    finally:
        process.terminate()
        status = process.wait(20)
        process.stdout.close()
    assert status == 0


@pytest.fixture(scope="session")
def serve() -> Callable[[Path], AbstractContextManager[str]]:
    """Serves a folder for the time of a with-block and gives its address."""
    return serving


@pytest.fixture(scope="session")
def shipped() -> Iterator[str]:
    """The address of a server of the shipped models."""
    with serving(ROOT / "models") as address:
        yield address
