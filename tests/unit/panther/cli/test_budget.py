import re
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from typer.testing import CliRunner

from panther.cli.commands import app

MODULE = """
import torch
from torch import nn

def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 64)).eval()

ROWS = torch.randn(50, 64, generator=torch.Generator().manual_seed(1))
LABELS = build()(ROWS).argmax(1)

def accuracy(model):
    with torch.no_grad():
        return (model(ROWS).argmax(1) == LABELS).float().mean()
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    (tmp_path / "shrink_me.py").write_text(MODULE)
    np.savez(tmp_path / "rows.npz", x=np.random.default_rng(0).normal(size=(200, 64)).astype(np.float32))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("shrink_me", None)


def run(*arguments):
    return CliRunner().invoke(app, ["compress", "shrink_me:build", *arguments])


def test_writes_a_file_that_computes_what_the_model_does(project):
    result = run("--max-error", "0.05", "--calibration", "rows.npz", "--out", "models", "--name", "small")
    assert result.exit_code == 0, result.output
    path = project / "models" / "small" / "1" / "model.onnx"
    assert f"wrote models/small/1/model.onnx ({path.stat().st_size:,} bytes)" in result.output.replace("\n", "")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    import shrink_me

    x = np.load("rows.npz")["x"]
    with torch.no_grad():
        y = shrink_me.build()(torch.from_numpy(x)).numpy()
    (found,) = session.run(None, {"input": x})
    assert np.linalg.norm(found - y) / np.linalg.norm(y) < 0.051
    assert path.stat().st_size < 0.5 * 4 * 2 * 64 * 96 + 6000


def test_the_result_is_trained_in_its_bits(project):
    result = run(
        "--max-bytes", "9000", "--calibration", "rows.npz", "--out", "small.onnx", "--distill", "60", "--no-resume"
    )
    assert result.exit_code == 0, result.output
    before, after = map(float, re.search(r"relative error ([\d.]+) → ([\d.]+)", result.output).groups())
    assert after <= before
    session = onnxruntime.InferenceSession("small.onnx", providers=["CPUExecutionProvider"])
    import shrink_me

    x = np.load("rows.npz")["x"]
    with torch.no_grad():
        y = shrink_me.build()(torch.from_numpy(x)).numpy()
    (found,) = session.run(None, {"input": x})
    # over all rows, most of which it was trained on
    assert np.linalg.norm(found - y) / np.linalg.norm(y) < 1.05 * before


def test_several_processes_are_refused(project, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    result = run("--max-error", "0.1", "--calibration", "rows.npz", "--out", "m", "--distill", "2")
    assert result.exit_code == 1
    assert "runs in one process; start it without torchrun" in result.output.replace("\n", "")


def test_a_metric_of_the_users_code_and_a_picture(project):
    result = run(
        "--metric", "shrink_me:accuracy", "--at-least", "0.9", "--calibration", "rows.npz", "--out", "small.onnx",
        "--curve", "curve.svg", "--kind", "int8", "--compare",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "metric: 1 →" in result.output
    assert "quantize_dynamic" in result.output
    assert (project / "curve.svg").read_text().startswith("<svg")
    products = [node.op_type for node in onnx.load("small.onnx").graph.node if "MatMul" in node.op_type]
    assert products == ["MatMulIntegerToFloat"] * 2


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["--max-error", "0.1", "--out", "models"], "give --calibration"),
        (["--out", "models", "--calibration", "rows.npz"], "give one of max_bytes, max_error, speedup and metric"),
        (["--max-error", "0.1", "--out", "a.pt", "--calibration", "rows.npz"], "out (a.pt) must end in .onnx"),
        (["--max-bytes", "10", "--out", "models", "--calibration", "rows.npz"], "max_bytes (10) can't be met"),
        (
            ["--metric", "shrink_me:no", "--at-least", "1", "--out", "m", "--calibration", "rows.npz"],
            "no callable 'no'",
        ),
        (["--metric", "shrink_me", "--at-least", "1", "--out", "m", "--calibration", "rows.npz"], "MODULE:FUNCTION"),
        (["--max-error", "0.1", "--out", "m", "--calibration", "rows.npz", "--kind", "int3"], "must be one or more of"),
        (["--max-error", "0.1", "--out", "m", "--calibration", "rows.npz", "--curve", "a.png"], "must end in .svg"),
        (["--max-error", "0.1", "--out", "a.safetensors", "--speedup", "2"], "--speedup is for an exported model"),
        (["--max-error", "0.1", "--out", "m", "--calibration", "rows.npz", "--memory", "1kB"], "is too small for 2"),
        (["--ratio", "0.5", "--out", "models", "--name", "small"], "--name is for an exported model"),
        (
            ["--max-error", "0.1", "--out", "m", "--calibration", "rows.npz", "--distill", "2", "--shard"],
            "--shard needs",
        ),
        (["--distill", "2", "--out", "m", "--calibration", "rows.npz"], "give one of max_bytes, max_error"),
    ],
)
def test_bad_arguments_are_told_in_a_line(project, arguments, match):
    result = run(*arguments)
    assert result.exit_code == 1
    assert match in result.output.replace("\n", "")
    assert "Traceback" not in result.output
    assert not (project / "models").exists()
