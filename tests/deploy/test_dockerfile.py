"""The Dockerfile, by hadolint; needs no engine."""

import subprocess
import sys
from pathlib import Path


def hadolint(path):
    program = Path(sys.executable).with_name("hadolint")
    return subprocess.run([program, "--no-color", path], check=False, capture_output=True, text=True)


def test_hadolint_has_nothing_to_say(root):
    answer = hadolint(root / "Dockerfile")
    assert (answer.returncode, answer.stdout + answer.stderr) == (0, "")


def test_hadolint_would_say_something(tmp_path):
    bad = tmp_path / "Dockerfile"
    bad.write_text("FROM python:latest\nRUN cd /tmp && pip install numpy\n")
    answer = hadolint(bad)
    assert answer.returncode == 1
    assert {"DL3007", "DL3003", "DL3013"} <= {word for line in answer.stdout.splitlines() for word in line.split()}


def test_the_server_for_the_cpu_is_what_is_built_where_no_target_is_named(root):
    stages = [line.split()[-1] for line in (root / "Dockerfile").read_text().splitlines() if line.startswith("FROM ")]
    assert stages[-1] == "cpu"
    assert {"cpu", "gpu", "train"} <= set(stages)
