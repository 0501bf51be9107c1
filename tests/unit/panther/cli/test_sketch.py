import re
import sys

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import panther as pr
from panther.checkpoint import CheckpointError, read
from panther.cli.commands import app
from panther.cli.export import load_model
from panther.nn import SKLinear

MODULE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(64, 96), nn.Linear(96, 64)
        self.again = self.fc1

    def forward(self, x, scale=None):
        y = self.fc2(torch.relu(self.fc1(x)))
        return y if scale is None else y * scale

def build():
    torch.manual_seed(0)
    return Net()
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    (tmp_path / "compress_me.py").write_text(MODULE)
    np.savez(tmp_path / "rows.npz", x=np.random.default_rng(0).normal(size=(200, 64)).astype(np.float32))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("compress_me", None)


def build(project):
    import importlib

    return importlib.import_module("compress_me").build()


def run(*arguments):
    return CliRunner().invoke(app, ["compress", "compress_me:build", *arguments])


def test_writes_a_file_that_restores_the_converted_model(project):
    original = build(project)
    torch.save(original.state_dict(), "weights.pt")
    result = run(
        "--checkpoint", "weights.pt", "--ratio", "0.6", "--calibration", "rows.npz", "--out", "small.safetensors"
    )
    assert result.exit_code == 0, result.output
    assert "wrote small.safetensors" in result.output
    assert "64 → 96" in result.output
    model = build(project)
    assert pr.restore_(model, "small.safetensors") == ("fc1", "again", "fc2")
    assert model.fc1 is model.again
    expected = build(project)
    pr.sketch_(expected, ratio=0.6, calibration=torch.from_numpy(np.load("rows.npz")["x"]).split(32))
    x = torch.randn(5, 64)
    torch.testing.assert_close(model(x), expected(x), atol=1e-5, rtol=1e-5)
    exported = load_model("compress_me:build", project / "small.safetensors")  # as 'panther export' loads it
    torch.testing.assert_close(exported(x), model(x))
    size = (project / "small.safetensors").stat().st_size
    assert size < 0.7 * sum(p.numel() * 4 for p in original.parameters())


def test_distills(project):
    result = run("--ratio", "0.5", "--calibration", "rows.npz", "--distill", "20", "--out", "s.safetensors")
    assert result.exit_code == 0, result.output
    assert re.search(r"distilled for \d+ steps: relative error", result.output)


def test_distillation_is_resumed_and_refused_with_other_settings(project):
    options = ["--ratio", "0.5", "--calibration", "rows.npz", "--checkpoints", "state", "--precision", "bfloat16"]
    results = [run(*options, "--distill", "20", "--out", out) for out in ("a.safetensors", "b.safetensors")]
    assert [result.exit_code for result in results] == [0, 0], results[0].output
    first, second = (read(project / name) for name in ("a.safetensors", "b.safetensors"))
    assert first.keys() == second.keys()
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    refused = run(*options, "--distill", "30", "--out", "c.safetensors")
    assert refused.exit_code == 1
    assert "settings.pt is of a run with steps 20; this one has steps 30" in refused.output.replace("\n", "")


def test_inputs_go_in_by_name(project):
    rows = np.load("rows.npz")["x"]
    np.savez("named.npz", x=rows, scale=np.full((200, 1), 2.0))
    assert run("--ratio", "0.6", "--calibration", "named.npz", "--out", "a.safetensors").exit_code == 0
    np.savez("one.npz", anything=rows)
    assert run("--ratio", "0.6", "--calibration", "one.npz", "--out", "b.safetensors").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["--out", "a.safetensors"], "give one of ratio, max_bytes and max_error"),
        (["--ratio", "0.5", "--out", "a.pt"], "must end in .safetensors"),
        (["--ratio", "0.01", "--out", "a.safetensors"], r"ratio (0.01) can't be met"),
        (["--ratio", "0.5", "--calibration", "no.npz", "--out", "a.safetensors"], "no.npz does not exist"),
        (["--ratio", "0.5", "--calibration", "compress_me.py", "--out", "a.safetensors"], "cannot be read as an .npz"),
        (["--ratio", "0.5", "--calibration", "odd.npz", "--out", "a.safetensors"], "'y' is not an input of Net"),
        (["--ratio", "0.5", "--calibration", "uneven.npz", "--out", "a.safetensors"], "the same number of rows"),
        (["--ratio", "0.5", "--distill", "5", "--out", "a.safetensors"], "give --calibration"),
        (["--ratio", "0.5", "--device", "tpu", "--out", "a.safetensors"], "device ('tpu') must be 'cpu' or 'cuda'"),
        (["--ratio", "0.5", "--checkpoint", "no.pt", "--out", "a.safetensors"], "no.pt does not exist"),
        (["--ratio", "0.5", "--skip", "fc9", "--out", "a.safetensors"], "skip pattern 'fc9'"),
        (["--ratio", "0.5", "--calibration", "wide.npz", "--out", "a.safetensors"], "can't be run by"),
    ],
)
def test_bad_arguments_are_told_in_a_line(project, arguments, match):
    np.savez("odd.npz", x=np.ones((3, 64), np.float32), y=np.ones(3))
    np.savez("uneven.npz", x=np.ones((3, 64), np.float32), scale=np.ones(2))
    np.savez("wide.npz", x=np.ones((3, 65), np.float32))
    result = run(*arguments)
    assert result.exit_code == 1
    assert match in result.output.replace("\n", "")
    assert "Traceback" not in result.output
    assert not list(project.glob("a.*"))


def test_restore_refuses_what_does_not_fit_and_leaves_the_model(tmp_path):
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
    pr.sketch_(model, ratio=0.6)
    pr.save(model, tmp_path / "m.safetensors")
    other = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 64))
    with pytest.raises(CheckpointError, match="does not fit"):
        pr.restore_(other, tmp_path / "m.safetensors")
    assert all(isinstance(module, nn.Linear) for module in other)
    with pytest.raises(CheckpointError, match="does not exist"):
        pr.restore_(other, tmp_path / "no.safetensors")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_restore_keeps_the_type_and_the_hooks_of_the_model(tmp_path, dtype):
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 3)).bfloat16()
    again = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 3)).to(dtype)
    calls = []
    again[0].register_forward_hook(lambda *_: calls.append(1))
    pr.sketch_(model, ratio=0.7)
    pr.save(model, tmp_path / "m.safetensors")
    assert pr.restore_(again, tmp_path / "m.safetensors") == ("0",)
    assert {tensor.dtype for tensor in again.state_dict().values()} == {dtype}
    x = torch.randn(3, 64).bfloat16()
    torch.testing.assert_close(again(x.to(dtype)), model(x).to(dtype), rtol=0.05, atol=0.05)
    assert calls == [1]


def test_restore_keeps_tied_layers_tied(tmp_path):
    def build():
        model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64)).eval()
        model[1].weight = model[0].weight
        return model

    model, again = build(), build()
    pr.sketch_(model, ratio=0.6)
    pr.save(model, tmp_path / "m.safetensors")
    pr.restore_(again, tmp_path / "m.safetensors")
    assert isinstance(again[0], SKLinear)
    assert again[0].S1s is again[1].S1s
    assert not again[0].training
    x = torch.randn(3, 64)
    torch.testing.assert_close(again(x), model(x))


def test_memory_holds_with_distillation(project):
    options = ("--ratio", "0.6", "--distill", "2", "--calibration", "rows.npz", "--out", "small.safetensors")
    result = run(*options, "--memory", "1kB")
    assert result.exit_code == 0, result.output
    assert "calibrated in 2 passes over the inputs" in " ".join(result.output.split())
    result = run(*options, "--memory", "8 apples")
    assert result.exit_code == 1
    assert "memory ('8 apples')" in result.output
