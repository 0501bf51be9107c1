"""The serving environment and 'make run', for real, as a user starts them; 'make test-make' asks for these."""

import contextlib
import os
import signal
import subprocess
import time

import pytest

pytestmark = [pytest.mark.environment, pytest.mark.timeout(600)]

READY_SECONDS = 60
STOP_SECONDS = 10


@pytest.fixture(scope="module")
def serve_python(root):
    """The interpreter of the environment that 'make run' makes."""
    subprocess.run(["make", "--no-print-directory", "serve-env"], cwd=root, check=True)
    return root / ".venv-serve/bin/python"


def test_the_second_time_there_is_nothing_to_do(root, serve_python):
    before = serve_python.parent.parent.stat().st_ctime_ns
    answer = subprocess.run(
        ["make", "--no-print-directory", "serve-env"], cwd=root, check=True, capture_output=True, text=True
    )
    assert answer.stdout + answer.stderr == ""
    assert serve_python.parent.parent.stat().st_ctime_ns == before


def test_the_serving_environment_serves_and_can_not_train(serve_python):
    code = """
import importlib.util, app.application
print([name for name in ("torch", "onnx", "onnxscript", "sklearn", "pytest") if importlib.util.find_spec(name)])
"""
    answer = subprocess.run([serve_python, "-c", code], cwd="/", check=False, capture_output=True, text=True)
    assert (answer.returncode, answer.stderr) == (0, "")
    assert answer.stdout == "[]\n"


def test_every_installed_version_is_the_tested_one(root, serve_python):
    code = """
import importlib.metadata
for found in importlib.metadata.distributions():
    print(found.name.lower().replace("_", "-"), found.version)
"""
    answer = subprocess.run([serve_python, "-c", code], cwd="/", capture_output=True, text=True, check=True)
    installed = dict(line.split() for line in answer.stdout.splitlines())
    for own in ("pip", "setuptools", "panther-sketch"):
        installed.pop(own, None)
    lines = (root / "constraints.txt").read_text().lower().replace("_", "-").splitlines()
    tested = dict(line.split("==") for line in lines if "==" in line)
    assert len(installed) > 10
    assert installed == {name: tested.get(name) for name in installed}


@pytest.fixture
def run(root, serve_python, free_port, plain_env, client, tmp_path):
    """'make run' on a free port with its log in a file, in a group of its own as a terminal would have it."""
    port = free_port()
    log = tmp_path / "log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            ["make", "--no-print-directory", "run"],
            cwd=root,
            env=plain_env | {"PANTHER_PORT": str(port)},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    process.log = log
    process.ask = client(port)
    deadline = time.monotonic() + READY_SECONDS
    try:
        while True:
            assert process.poll() is None, f"it ended by itself:\n{log.read_text()}"
            assert time.monotonic() < deadline, f"not ready:\n{log.read_text()}"
            with contextlib.suppress(OSError):
                if process.ask("/health/ready")[0] == 200:
                    break
            time.sleep(0.1)
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_make_run_answers_with_the_right_digits(run, digits):
    rows, classes = digits
    status, answer = run.ask("/predict", {"inputs": rows})
    assert status == 200, answer
    right = [row["label"] == label for row, label in zip(answer["predictions"], classes, strict=True)]
    assert sum(right) / len(right) >= 0.97
    assert run.ask("/stats")[0] == 200


def test_ctrl_c_ends_make_run_without_a_trace(run):
    os.killpg(run.pid, signal.SIGINT)
    run.wait(timeout=STOP_SECONDS)
    assert "Traceback" not in run.log.read_text()
    with pytest.raises(ProcessLookupError):
        os.killpg(run.pid, 0)
    with pytest.raises(OSError, match="refused"):
        run.ask("/health/live")
