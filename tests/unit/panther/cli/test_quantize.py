import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from typer.testing import CliRunner

import panther as pr
from panther.cli.commands import app

MODULE = """
import torch
from torch import nn

class Tagger(nn.Module):
    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(512, 64)
        self.body = nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 64))

    def forward(self, tokens, scale):
        return self.body(self.words(tokens)) * scale[:, None, None]

def build():
    torch.manual_seed(0)
    return Tagger()
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    (tmp_path / "quantize_me.py").write_text(MODULE)
    random = np.random.default_rng(0)
    tokens, scale = random.integers(0, 512, size=(120, 6)), random.normal(size=120).astype(np.float32)
    np.savez(tmp_path / "inputs.npz", tokens=tokens, scale=scale)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("quantize_me", None)


def build(project):
    import importlib

    return importlib.import_module("quantize_me").build().eval()


def run(*arguments):
    return CliRunner().invoke(app, ["quantize", "quantize_me:build", *arguments])


def test_writes_the_file_of_the_quantized_model(project):
    original = build(project)
    torch.save(original.state_dict(), "weights.pt")
    result = run("--checkpoint", "weights.pt", "--calibration", "inputs.npz", "--out", "models", "--name", "small")
    assert result.exit_code == 0, result.output
    path = project / "models" / "small" / "1" / "model.onnx"
    assert f"wrote models/small/1/model.onnx ({path.stat().st_size:,} bytes)" in result.output.replace("\n", "")
    assert "Quantization of linear layers" in result.output
    inputs = dict(np.load("inputs.npz"))
    (found,) = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, inputs)
    tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
    with torch.no_grad():
        y = original(**tensors).numpy()
    assert 0 < np.linalg.norm(found - y) / np.linalg.norm(y) < 0.02
    assert path.stat().st_size < 0.3 * 4 * sum(p.numel() for p in original.parameters()) + 8000
    expected = build(project)
    pr.quantize_(expected, calibration=[{k: v[i : i + 32] for k, v in tensors.items()} for i in range(0, 120, 32)])
    with torch.no_grad():
        np.testing.assert_allclose(found, expected(**tensors).numpy(), atol=1e-4)


@pytest.mark.parametrize(
    ("options", "operators"),
    [
        (["--weights", "int4"], {"MatMulNBits": 2}),
        (["--weights", "int8", "--block-size", "32"], {"MatMulNBits": 2}),
        (["--alpha", "0"], {"MatMulIntegerToFloat": 2}),
        (["--skip", "body.0"], {"MatMulIntegerToFloat": 1}),
        (["--max-error", "1e-9"], {}),
        (["--embeddings", "int4"], {"MatMulIntegerToFloat": 2, "GatherBlockQuantized": 1}),
    ],
)
def test_formats_are_those_of_the_options(project, options, operators):
    result = run(*options, "--calibration", "inputs.npz", "--out", "small.onnx", "--memory", "1GB")
    assert result.exit_code == 0, result.output
    types = [node.op_type for node in onnx.load("small.onnx").graph.node]
    quantized = ("MatMulNBits", "MatMulIntegerToFloat", "GatherBlockQuantized")
    assert {name: types.count(name) for name in quantized if name in types} == operators


def test_trains_in_bits_what_it_exports(project):
    results = {}
    for steps in (0, 60):
        options = ("--distill", steps, "--checkpoints", "state") if steps else ()
        result = run("--weights", "int4", "--calibration", "inputs.npz", "--out", f"{steps}.onnx", *map(str, options))
        assert result.exit_code == 0, result.output
        assert ("distilled for " in result.output) == bool(steps)
        results[steps] = onnx.load(f"{steps}.onnx")
    names = [{tensor.name: tensor for tensor in model.graph.initializer} for model in results.values()]
    assert names[0].keys() == names[1].keys()
    assert [tensor.dims for tensor in names[0].values()] == [tensor.dims for tensor in names[1].values()]
    assert any(tensor != names[1][name] for name, tensor in names[0].items())
    assert (project / "state").is_dir()


def test_what_was_not_converted_is_not_trained(project):
    result = run("--max-error", "1e-9", "--calibration", "inputs.npz", "--out", "small.onnx", "--distill", "2")
    assert result.exit_code == 0, result.output
    assert "not distilled: no layer was converted" in result.output
    assert (project / "small.onnx").exists()


def test_embeddings_stay_as_they_are_if_asked(project):
    result = run("--embeddings", "float32", "--calibration", "inputs.npz", "--out", "small.onnx")
    assert result.exit_code == 0, result.output
    weights = {tuple(array.dims): array.data_type for array in onnx.load("small.onnx").graph.initializer}
    assert weights[512, 64] == onnx.TensorProto.FLOAT


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["--out", "small.pt"], "out (small.pt) must end in .onnx or be the folder of a model repository"),
        (["--weights", "int3"], "weights ('int3') must be one of int8, int4"),
        (["--embeddings", "int3"], "embeddings ('int3') must be one of int8, int4, float32"),
        (["--block-size", "17"], "block_size (17) must be one of [16, 32, 64, 128, 256]"),
        (["--max-error", "-1"], "max_error (-1.0) must be positive"),
        (["--alpha", "2"], "alphas ([2.0]) must lie between 0 and 1"),
        (["--memory", "1kB"], "is too small for"),
        (["--memory", "8 apples"], "memory ('8 apples')"),
        (["--skip", "fc9"], "skip pattern 'fc9'"),
        (["--calibration", "no.npz"], "no.npz does not exist"),
        (["--calibration", "odd.npz"], "'y' is not an input of Tagger"),
        (["--calibration", "wide.npz"], "can't be run by"),
        (["--checkpoint", "no.pt"], "no.pt does not exist"),
        (["--distill", "2", "--device", "tpu"], "device ('tpu') must be 'cpu' or 'cuda'"),
        (["--distill", "2", "--precision", "int8"], "precision ('int8')"),
    ],
)
def test_bad_arguments_are_told_in_a_line(project, arguments, match):
    np.savez("odd.npz", tokens=np.ones((3, 6), np.int64), y=np.ones(3))
    np.savez("wide.npz", tokens=np.full((3, 6), 600), scale=np.ones(3))
    result = run("--calibration", "inputs.npz", "--out", "small.onnx", *arguments)
    assert result.exit_code == 1
    assert match in result.output.replace("\n", "")
    assert "Traceback" not in result.output
    assert not (project / "small.onnx").exists()


def test_calibration_and_out_are_required(project):
    assert run("--out", "small.onnx").exit_code == 2
    assert run("--calibration", "inputs.npz").exit_code == 2
