"""What the tests of the documents share: the scripts that make them, which are no package, and the built site."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

os.environ["ORT_DISABLE_TELEMETRY"] = "1"
ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="session")
def root():
    return ROOT


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    """The site as 'make docs' builds it: with warnings as errors. It takes ten seconds, once for all processes."""
    pytest.importorskip("mkdocs")
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "http_proxy": "http://127.0.0.1:9", "no_proxy": ""}
    with folder.with_suffix(".built").open("a+") as built:
        fcntl.flock(built, fcntl.LOCK_EX)
        if built.tell() == 0:
            ended = subprocess.run(
                command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600, check=False
            )
            assert ended.returncode == 0, ended.stdout + ended.stderr
            built.write("complete")
    return folder


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    """Two threads on two cores that others use too wait for each other at every small product."""
    import torch

    torch.set_num_threads(1)
