"""Provenance of a result that was measured on a GPU: commit, time, device and versions."""

from __future__ import annotations

import platform
import subprocess
from datetime import UTC, datetime
from typing import Any

import torch


def device() -> dict[str, str]:
    """The current CUDA device and its driver."""
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    driver = subprocess.run(query, capture_output=True, text=True, check=True).stdout.splitlines()[0].strip()
    return {"gpu": torch.cuda.get_device_name(), "driver": driver}


def about(benchmark: str, commit: str, **versions: str | None) -> dict[str, Any]:
    """The head of a result's JSON; versions are those of further packages."""
    return {
        "benchmark": benchmark,
        "commit": commit,
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": device(),
        "versions": {
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "cuda": torch.version.cuda,
            **versions,
        },
    }
