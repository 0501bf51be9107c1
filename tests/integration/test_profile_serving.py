"""The profile of the request path runs, so that it follows the code that it looks at."""

import json
import subprocess
import sys

from helpers.processes import LIMIT_S, ROOT


def test_the_profile_times_each_stage_and_whole_requests():
    command = [sys.executable, str(ROOT / "benchmarks/profile_serving.py"), "--quick", "--json"]
    found = subprocess.run(command, check=False, capture_output=True, text=True, timeout=LIMIT_S)
    assert found.returncode == 0, found.stderr
    times = json.loads(found.stdout)
    assert {"decode JSON, 1 rows", "decode binary, 32 rows", "whole request, 32 rows binary, 8 at a time"} <= set(times)
    assert all(time > 0 for time in times.values())
