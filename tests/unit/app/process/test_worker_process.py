"""The parent of several workers is light, and a worker that cannot import the server says so and does not come back."""

import subprocess
import sys

import pytest
from helpers.processes import LIMIT_S, ROOT, linear, put

HEAVY = ("app.application", "fastapi", "onnxruntime", "uvicorn")


def run(program, *arguments):
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT_S, check=False)


def test_the_parent_of_workers_imports_no_runtime_and_no_framework():
    done = run(f"import sys, app.__main__, app.process.serve; print([name for name in {HEAVY} if name in sys.modules])")
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.parametrize("package", ["onnxruntime", "uvicorn"])
def test_a_worker_without_a_package_ends_the_server(tmp_path, package):
    put(tmp_path, linear(1), "m", 1)
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / f"{package}.py").write_text("raise ImportError('made for the test')\n", encoding="utf-8")
    # The workers get the path of the parent.
    program = f"import sys; sys.path.insert(0, {str(broken)!r}); from app.__main__ import main; sys.exit(main())"
    done = run(program, "--port", 0, "--workers", 2, "--device", "cpu", "--model-dir", tmp_path)
    assert done.returncode == 1, done.stderr
    assert "a package of the server cannot be imported" in done.stderr
    assert "could not start" in done.stderr
    assert "starting another" not in done.stderr
