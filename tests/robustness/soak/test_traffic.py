"""A few seconds of what 'make soak' does for twenty minutes."""

import json
import os
import subprocess
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"


def test_mixed_traffic_gets_right_answers_and_nothing_unexpected():
    program = Path(__file__).with_name("traffic.py")
    ended = subprocess.run(
        [sys.executable, program, "--minutes", "0.15", "--workers", "2"],
        capture_output=True, text=True, timeout=240, check=False, env={**os.environ, "PYTHONPATH": str(BENCHMARKS)},
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout + ended.stderr
    result = json.loads(ended.stdout)
    assert (result["wrong answers"], result["unexpected statuses"], result["tracebacks in the log"]) == (0, 0, 0)
    kinds = ("json", "json gzip", "npy", "octets", "v2 json", "v2 binary", "swing", "load", "burst")
    assert all(result["answers"].get(f"{kind} 200") for kind in kinds)
