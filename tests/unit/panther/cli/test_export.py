import json

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from panther.cli import commands, export
from panther.cli.export import InputSpec, example_tensors
from panther.export import CompressionCurve, CurvePoint, export_onnx
from panther.nn import SKLinear

MODULE = """
import torch
from torch import nn
from panther.nn import ConditionalSKLinear, SKLinear

def net():
    return nn.Sequential(SKLinear(64, 48, 1, 8), nn.ReLU(), SKLinear(48, 32, 1, 8))

def choosing():
    return ConditionalSKLinear(64, 48, num_terms=1, low_rank=8)

def broken():
    raise RuntimeError("no such thing")

instance = nn.Linear(64, 32)
number = 3
def not_a_model():
    return number
"""
QUICK = ["--threads", "1", "--batch-size", "1", "--plan", "two_products", "--name", "net"]


@pytest.fixture
def panther(tmp_path, monkeypatch):
    """Run the command in a folder that holds the user's module; every error must be one line with exit code 1."""
    module = f"mynet_{tmp_path.name}"
    (tmp_path / f"{module}.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments):
        result = CliRunner().invoke(commands.app, [part.replace("mynet:", f"{module}:") for part in arguments])
        if result.exit_code == 1:
            assert isinstance(result.exception, SystemExit), result.exception
            assert result.stderr.startswith("error: ")
            assert result.stderr.count("\n") == 1
            assert "Traceback" not in result.output
        return result

    return call


def test_export_and_inspect(panther, tmp_path):
    torch.manual_seed(0)
    np.savez(tmp_path / "rows.npz", x=np.random.default_rng(0).standard_normal((5, 64)).astype(np.float32))
    result = panther(
        *("export", "mynet:net", "--input", "x:float32[batch,64]", "--data", "rows.npz", "--output", "scores"),
        *("--labels", ",".join(f"c{i}" for i in range(32)), "--license", "MIT", "--author", "A", "--author", "B"),
        *("--description", "a net", "--preprocessing", "none", *QUICK),
    )
    assert result.exit_code == 0, result.output
    assert "model 'net'" in result.stdout
    shown = panther("inspect", "models/net/1/model.onnx", "--json")
    card = json.loads(shown.stdout)["card"]
    assert (card["license"], card["authors"], card["description"]) == ("MIT", ["A", "B"], "a net")
    assert card["outputs"][0]["labels"][3] == "c3"
    assert "x·A·B" in panther("inspect", "models/net/1/model.onnx").stdout


def test_inspect_prints_the_compression_curve(panther):
    points = (
        CurvePoint(1_100, 0.25, measured=False),
        CurvePoint(2_200, 0.0125, measured=True, chosen=True, metric=0.9375),
    )
    curve = CompressionCurve("metric at least 0.9", 8_800, points, original_metric=0.96875)
    for name, given in (("curved", curve), ("plain", None)):
        export_onnx(
            nn.Linear(4, 2),
            torch.randn(3, 4),
            "models",
            name=name,
            num_threads=1,
            batch_sizes=(1,),
            compression_curve=given,
        )
    shown = panther("inspect", "models/curved/1/model.onnx").stdout
    assert "compression curve for metric at least 0.9; the original has 8,800 bytes and metric 0.9688" in shown
    rows = [line.split() for line in shown.splitlines()]
    assert ["bytes", "error", "metric", "curve"] in rows
    assert ["1,100", "0.2500", "predicted"] in rows
    assert ["2,200", "0.0125", "0.9375", "measured,", "chosen"] in rows
    assert "curve" not in panther("inspect", "models/plain/1/model.onnx").stdout


def test_the_kind_and_the_unit_of_an_output(panther, tmp_path):
    arguments = ("export", "mynet:net", "--input", "x:float32[batch,64]", "--output", "height", *QUICK)
    result = panther(*arguments, "--kind", "regression", "--unit", "cm")
    assert result.exit_code == 0, result.output
    assert "output height: regression, in cm" in result.stdout
    (output,) = json.loads(panther("inspect", "models/net/1/model.onnx", "--json").stdout)["card"]["outputs"]
    assert output == {"name": "height", "kind": "regression", "unit": "cm"}
    assert "unit ('cm') of output 'height' needs kind='regression'" in panther(*arguments, "--unit", "cm").stderr
    assert "kind ('score') of output 'height' must be one of 'logits'" in panther(*arguments, "--kind", "score").stderr


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_the_checkpoint_is_what_is_exported(suffix, panther, tmp_path, run):
    import panther as pr
    from panther.nn import SKLinear

    torch.manual_seed(5)
    model = torch.nn.Sequential(SKLinear(64, 48, 1, 8), torch.nn.ReLU(), SKLinear(48, 32, 1, 8))
    path = tmp_path / f"w{suffix}"
    torch.save(model.state_dict(), path) if suffix == ".pt" else pr.save(model, path)
    arguments = ("--input", "x:float32[n,64]", "--checkpoint", str(path), "--to", "net.onnx")
    result = panther("export", "mynet:net", *arguments, *QUICK)
    assert result.exit_code == 0, result.output
    x = torch.randn(3, 64)
    with torch.no_grad():
        assert np.allclose(run(tmp_path / "net.onnx", x=x)[0], model(x).numpy(), atol=1e-5)


def test_a_branch_by_option(panther):
    export = ("export", "mynet:choosing", "--input", "x:float32[n,64]", "--to", "c.onnx", *QUICK)
    assert "say conditional='sketched'" in panther(*export).stderr
    assert panther(*export, "--conditional", "standard").exit_code == 0


ONE = ["--input", "x:float32[batch,64]"]
ERRORS = [
    (["mynet", *ONE], "model 'mynet' must be MODULE:FACTORY"),
    (["nowhere_at_all:net", *ONE], "cannot import 'nowhere_at_all'"),
    (["mynet:nothing", *ONE], "has no callable 'nothing'"),
    (["mynet:number", *ONE], "has no callable 'number'"),
    (["mynet:broken", *ONE], "broken failed: RuntimeError: no such thing"),
    (["mynet:not_a_model", *ONE], "returned int; a torch.nn.Module is needed"),
    (["mynet:instance", *ONE], "is a model, not a function that returns one"),
    (["mynet:net", *ONE, "--checkpoint", "whole.pt"], "or holds other objects than tensors, such as a whole model"),
    (["mynet:net", *ONE, "--checkpoint", "parallel.pt"], 'Unexpected key(s) in state_dict: "module.0.S1s"'),
    (["mynet:net", *ONE, "--checkpoint", "sizes.pt"], "; and 6 more"),
    (["mynet:net", "--input", "x"], "input 'x' must be NAME:DTYPE[SIZE,...]"),
    (["mynet:net", "--input", "x:float99[batch]"], "type 'float99' must be one of"),
    (["mynet:net", "--input", "x:float32[0,64]"], "'0' must be a positive size"),
    (["mynet:net", "--input", "x:float32[batch,63]"], "does not take the example inputs"),
    (["mynet:net", *ONE, *ONE], "Sequential.forward takes"),
    (["mynet:net", *ONE, "--checkpoint", "none.pt"], "checkpoint none.pt does not exist"),
    (["mynet:net", *ONE, "--checkpoint", "bad.pt"], "checkpoint bad.pt cannot be loaded into Sequential"),
    (["mynet:net", *ONE, "--checkpoint", "bad.safetensors"], "checkpoint bad.safetensors cannot be loaded"),
    (["mynet:net", *ONE, "--data", "none.npz"], "none.npz cannot be read as an .npz file"),
    (["mynet:net", *ONE, "--data", "other.npz"], "holds the arrays ['y']; input 'x' is missing"),
    (["mynet:net", "--input", "y:float32[n,9]", "--data", "other.npz"], "'y' has shape (2, 3); specified is ['n', 9]"),
    (["mynet:net", *ONE, "--plan", "best"], "plan ('best') must be"),
    (["mynet:net", *ONE, "--target", "tpu"], "target device ('tpu')"),
    (["mynet:net", *ONE, "--to", "mynet.txt/models"], "cannot write to"),
    (["mynet:net", *ONE, "--tolerance", "1e-12"], "differs from torch by"),
]


@pytest.mark.parametrize(("arguments", "message"), ERRORS, ids=[" ".join(entry[0]) for entry in ERRORS])
def test_errors_are_lines(arguments, message, panther, tmp_path):
    (tmp_path / "mynet.txt").write_text("")
    (tmp_path / "bad.pt").write_text("no weights")
    net = nn.Sequential(SKLinear(64, 48, 1, 8), nn.ReLU(), SKLinear(48, 32, 1, 8))
    torch.save(net, tmp_path / "whole.pt")
    torch.save(nn.DataParallel(net).state_dict(), tmp_path / "parallel.pt")
    other = nn.Sequential(SKLinear(32, 24, 1, 4), nn.ReLU(), SKLinear(24, 16, 1, 4))
    torch.save(other.state_dict(), tmp_path / "sizes.pt")
    (tmp_path / "bad.safetensors").write_text("no weights")
    np.savez(tmp_path / "other.npz", y=np.zeros((2, 3), np.float32))
    result = panther("export", *arguments, *(QUICK if "--plan" not in arguments else ["--name", "net"]))
    assert result.exit_code == 1, result.output
    assert message in result.stderr


def test_inspect_errors_are_lines(panther, tmp_path):
    (tmp_path / "g.onnx").write_bytes(b"garbage")
    assert "is not an ONNX model" in panther("inspect", "g.onnx").stderr
    assert "does not exist" in panther("inspect", "none.onnx").stderr


@pytest.mark.parametrize(
    ("text", "shape", "axes"),
    [
        ("x:float32[batch,784]", ("batch", 784), {0: "batch"}),
        ("ids:int64[batch, sequence]", ("batch", "sequence"), {0: "batch", 1: "sequence"}),
        ("x:float32[64]", (64,), {}),
        ("x:bool[]", (), {}),
    ],
)
def test_specifications(text, shape, axes):
    spec = InputSpec.parse(text)
    assert (spec.shape, spec.dynamic_axes) == (shape, axes)


def test_random_examples_take_different_sizes_for_different_axes():
    specs = [InputSpec.parse("a:float32[n,m,3]"), InputSpec.parse("b:int64[m,k]")]
    tensors = example_tensors(specs, None)
    (n, m, three), (also_m, k) = tensors["a"].shape, tensors["b"].shape
    assert (three, also_m) == (3, m)
    assert len({n, m, k}) == 3
    assert tensors["b"].dtype == torch.int64
    assert export.example_tensors(specs, None)["a"].equal(tensors["a"])
