"""Provenance of a result: commit, time, machine and versions."""

import json
import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("onnxruntime", "uvicorn", "fastapi", "numpy", "pysimdjson")


def about(packages=PACKAGES):
    """The head of a result's JSON."""
    return {
        "commit": git("rev-parse", "HEAD"),
        "changed_files": len(git("status", "--porcelain", "--untracked-files=no").splitlines()),
        "taken_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {"cpu": cpu_model(), "cores": os.cpu_count(), "kernel": platform.release()},
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
    }


def git(*arguments):
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()


def cpu_model():
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(": ")[2]
    return platform.processor()


def print_rules(report):
    """Say which figures that must be reached were."""
    for item in report["must_reach"]:
        print(f"{'reached' if item['reached'] else 'MISSED '}  {item['what']}: {item['value']} ({item['rule']})")


def conclude(report, arguments):
    """Write a result where one is wanted; returns the exit status, which ``--strict`` makes 1 for a missed figure."""
    if arguments.output is not None:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps(report, indent=1) + "\n")
    return 1 if arguments.strict and not all(item["reached"] for item in report["must_reach"]) else 0
