import ast
import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest

from app.telemetry.logs import JsonFormatter

ROOT = Path(__file__).parents[2]
FORBIDDEN = {"panther", "torch", "onnx"}


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module


@pytest.mark.parametrize("path", sorted((ROOT / "app").rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_import_crosses_the_line(path):
    assert not {name.partition(".")[0] for name in imports(path)} & FORBIDDEN


def test_the_server_imports_where_torch_and_onnx_are_not_installed():
    program = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"panther", "torch", "onnx"}:
            raise ImportError(f"{name} is blocked")
sys.meta_path.insert(0, Blocked())
import app.application, app.process.serve, app.process.worker, app.__main__
print(sorted(set(sys.modules) & {"panther", "torch", "onnx"}))
"""
    ended = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert (ended.stdout.strip(), ended.returncode) == ("[]", 0), ended.stderr


def test_importing_onnxruntime_comes_after_telemetry_is_off():
    program = """
import os, sys
os.environ["ORT_DISABLE_TELEMETRY"] = "0"
class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == "onnxruntime":
            print(os.environ["ORT_DISABLE_TELEMETRY"])
sys.meta_path.insert(0, Watch())
import app.process.worker
"""
    ended = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.stdout.strip() == "1", ended.stderr


def test_a_log_line_as_json():
    record = logging.LogRecord("app.x", logging.WARNING, "f", 1, "model %s", ("digits",), None)
    line = json.loads(JsonFormatter().format(record))
    assert (line["level"], line["logger"], line["message"]) == ("warning", "app.x", "model digits")
    assert line["time"].endswith("Z")
