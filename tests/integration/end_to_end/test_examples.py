"""The scripts of examples/, each run as it stands, in a folder of its own; what they print is looked at."""

from __future__ import annotations

import contextlib
import io
import os
import re
import runpy
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from helpers import processes

ROOT = Path(__file__).parents[3]
EXAMPLES = ROOT / "examples"


def run(name, folder, *arguments):
    """What the script prints, in a process that a user would start."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore", "COLUMNS": "200"}
    command = [sys.executable, EXAMPLES / name, *arguments]
    ended = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def run_here(name, folder, *arguments):
    """What the script prints, in this process, which has imported torch already: that is half of its duration."""
    import torch

    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.setattr(sys, "argv", [name, *arguments])
        patch.setenv("COLUMNS", "200")
        patch.chdir(folder)
        with contextlib.redirect_stdout(printed):
            runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    return printed.getvalue()


def number(pattern, text):
    found = re.search(pattern, text)
    assert found, f"{pattern!r} is not in:\n{text}"
    return float(found[1].replace(",", ""))


def test_the_tutorial(tmp_path):
    out = run("tutorial.py", tmp_path)
    assert "dense 16,781,312, learnable 4,198,400, fixed 4,194,304" in out
    assert "learnable: 75.0% less than dense" in out
    assert "learnable and fixed: 50.0% less than dense" in out
    assert number(r"difference to its dense twin (\S+);", out) < 1e-5
    for name in ("dense", "sketched"):
        assert number(rf"{name}: .* accuracy (\S+) on", out) > 0.93
    assert number(r"sketched: ([\d,]+) learnable", out) == 218_378
    assert "efficient=False, -100.0% less stored" in out


def test_a_trained_network_is_compressed(tmp_path):
    out = run_here("compressed_digits.py", tmp_path, "--width", "64", "--epochs", "4")
    assert number(r"held-out digits: (\S+),", out) > 0.8
    assert number(r"model.onnx: ([\d,]+) bytes", out) < number(r"weights of the dense network: ([\d,]+)", out) / 4
    assert (tmp_path / "models" / "digits-small" / "1" / "model.onnx").exists()


def test_a_table_becomes_a_model_that_is_served(tmp_path, serve):
    import httpx

    out = run_here("table_classifier.py", tmp_path)
    assert number(r"accuracy (\S+) on 142 held-out rows", out) > 0.92
    with serve(tmp_path / "models") as address:
        answer = httpx.post(f"{address}/predict", content=(tmp_path / "row.json").read_bytes(), timeout=60).json()
        assert answer["predictions"][0]["label"] in {"malignant", "benign"}
        (stats,) = httpx.get(f"{address}/models/table/stats", timeout=60).json()["models"]
        assert [layer["name"] for layer in stats["layers"]] == ["network.2"]


def test_a_table_of_ones_own(tmp_path):
    lines = ["width,height,kind"]
    for i in range(60):
        lines += [f"{i % 7},{1 + i % 5},small", f"{20 + i % 7},{30 + i % 5},large"]
    (tmp_path / "rows.csv").write_text("\n".join(lines) + "\n")
    out = run_here("table_classifier.py", tmp_path, "rows.csv", "--label", "kind", "--to", "out")
    assert number(r"accuracy (\S+) on 30 held-out rows", out) == 1
    assert (tmp_path / "out" / "table" / "1" / "model.onnx").exists()


def test_a_transformer_is_converted(tmp_path):
    out = run_here("convert_encoder.py", tmp_path)
    original, converted = (number(rf"{name}: accuracy (\S+)", out) for name in ("original", "converted"))
    assert original > 0.9
    assert converted > original - 0.1
    before, after = (number(rf"distilled: .* error {pattern}", out) for pattern in (r"(\S+) ->", r"\S+ -> (\S+)"))
    assert after < before
    assert (tmp_path / "models" / "sorter" / "1" / "model.onnx").exists()


def test_a_loop_of_ones_own(tmp_path):
    out = run_here("custom_loop.py", tmp_path)
    losses = [float(loss) for loss in re.findall(r"loss (\S+),", out)]
    assert losses == sorted(losses, reverse=True)
    assert out.count("the function is the same") == 2
    assert "equal to the bit: True" in out


def test_the_client(tmp_path, shipped):
    out = run("ask.py", tmp_path, shipped)
    assert "ready: True models: ['digits', 'digits-small']" in out
    assert "logits: (1, 10) float32" in out
    assert re.search(r"labels: .*'2'", out)
    assert re.search(r"refused: .*784", out)
    assert "all the same: True" in out


def test_the_client_over_both_protocols(tmp_path):
    with processes.running(ROOT / "models", "--grpc-port", 0) as server:
        out = run("ask_grpc.py", tmp_path, f"grpc://{server.grpc}", server.url)
    for protocol in ("grpc", "http"):
        assert number(rf"{protocol}: ready True, inputs \['x'\], (\S+) ms a request", out) > 0
    assert len(re.findall(r"too late: the request waited \d+ µs, longer than its timeout", out)) == 2
    assert out.count("NotFoundError (404): model 'no-such-model' is not loaded; loaded: digits") == 2
    assert "all the same: True" in out


def test_a_model_that_is_not_ours(tmp_path):
    out = run_here("serve_any_model.py", tmp_path)
    assert number(r"largest difference to torch: (\S+)", out) < 1e-5
    assert "has a card: False" in out
    assert "bytes of a dense twin: None" in out


def test_every_example_is_run():
    text = Path(__file__).read_text(encoding="utf-8")
    for path in EXAMPLES.glob("*.py"):
        assert re.search(rf'run(_here)?\("{path.name}"', text)


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_an_example_says_how_it_is_run(path):
    assert f"python examples/{path.name}" in path.read_text(encoding="utf-8").split('"""')[1]
