"""`panther train`: from data to a published model, and the shipped model that it made."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from typer.testing import CliRunner

from panther.cli.commands import app
from panther.counting import count_parameters
from panther.train import load_digits

SHIPPED = Path(__file__).parents[4] / "models" / "digits" / "1" / "model.onnx"


def train(*arguments: object):
    return CliRunner().invoke(app, ["train", "--threads", "1", *map(str, arguments)], env={"COLUMNS": "160"})


def card_of(path: Path) -> dict:
    (entry,) = [entry for entry in onnx.load(path).metadata_props if entry.key == "panther.card"]
    return json.loads(entry.value)


def accuracy_of(path: Path, x: np.ndarray, y: np.ndarray) -> float:
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {session.get_inputs()[0].name: x})
    return float((logits.argmax(axis=1) == y).mean())


def test_the_shipped_model_is_as_good_as_it_says():
    data = load_digits(seed=0)
    card = card_of(SHIPPED)
    accuracy = accuracy_of(SHIPPED, data.test_x.numpy(), data.test_y.numpy())
    dense = card["training"]["dense_twin_metrics"]["test_accuracy"]
    assert accuracy == pytest.approx(card["training"]["metrics"]["test_accuracy"], abs=1e-9)
    assert accuracy >= 0.97
    assert abs(accuracy - dense) <= 0.01
    assert card["training"]["test_rows"] == len(data.test_x) == 450


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Two runs of the same command into one repository: the output of the first, and the repository."""
    repository = tmp_path_factory.mktemp("models")
    first, second = (train("--to", repository, "--epochs", 10, "--seed", 3) for _ in range(2))
    assert first.exit_code == second.exit_code == 0, first.output + second.output
    return first.output, repository


def test_trains_on_the_digits_and_publishes(trained):
    output, repository = trained
    path = repository / "digits" / "1" / "model.onnx"
    assert str(path) in output.replace("\n", "")
    data = load_digits(seed=3)
    card = card_of(path)
    accuracy = accuracy_of(path, data.test_x.numpy(), data.test_y.numpy())
    assert accuracy == pytest.approx(card["training"]["metrics"]["test_accuracy"])
    assert accuracy > 0.9
    assert card["outputs"][0]["labels"] == [str(digit) for digit in range(10)]
    fc1 = next(layer for layer in card["layers"] if layer["name"] == "fc1")
    expected = count_parameters(784, 512, 2, 64)
    assert fc1["parameters"] == {"dense": expected.dense, "learnable": expected.learnable, "fixed": expected.fixed}


def test_the_table_has_what_each_network_costs(trained):
    output, _ = trained
    # 784·512 + 512·256 + 256·10 and their biases; fc3 is dense in both, its sketch being larger
    for row in (
        r"learnable parameters\W+535,818\W+216,882\W+-59.5%",
        r"fixed parameters\W+0\W+216,104",
        r"stored parameters\W+535,818\W+432,986\W+-19.2%",
        r"bytes in memory\W+2,143,272\W+1,731,944\W+-19.2%",
        r"multiply-adds a row\W+535,040\W+432,208\W+-19.2%",
        r"time of one row, torch\W+\d+ µs\W+\d+ µs",
        r"test accuracy\W+\d+\.\d\d%",
        r"training time\W+\d+\.\d s",
    ):
        assert re.search(row, output), row


def test_the_same_seed_gives_the_same_model(trained):
    _, repository = trained
    x = load_digits(seed=3).test_x.numpy()
    outputs = []
    for version in (1, 2):
        path = repository / "digits" / str(version) / "model.onnx"
        session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
        outputs.append(session.run(None, {session.get_inputs()[0].name: x})[0])
    np.testing.assert_allclose(outputs[0], outputs[1], rtol=1e-4, atol=1e-4)


def test_own_data(tmp_path):
    generator = np.random.default_rng(0)
    centres = 100 * generator.standard_normal((3, 20))
    y = np.repeat(["ape", "bee", "cat"], 60)
    x = centres[np.repeat(range(3), 60)] + generator.standard_normal((180, 20))
    np.savez(tmp_path / "zoo.npz", x=x, y=y)
    result = train("--data", tmp_path / "zoo.npz", "--to", tmp_path / "models", "--epochs", 4)
    assert result.exit_code == 0, result.output
    path = tmp_path / "models" / "zoo" / "1" / "model.onnx"
    assert card_of(path)["outputs"][0]["labels"] == ["ape", "bee", "cat"]
    assert accuracy_of(path, x.astype(np.float32), np.repeat(range(3), 60)) > 0.95


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.zeros((4, 2))}, "'y' is missing"),
        ({"x": np.zeros(4), "y": np.arange(4)}, "'x' must be"),
        ({"x": np.zeros((4, 2)), "y": np.zeros(3, int)}, "'x' has 4 rows and 'y' 3"),
        ({"x": np.full((4, 2), np.nan), "y": np.arange(4)}, "row 0 that is not a finite float32"),
        ({"x": np.zeros((4, 2)), "y": np.zeros(4, int)}, "at least 2 are needed"),
        ({"x": np.zeros((4, 2)), "y": np.arange(4)}, "cannot hold out a quarter of each class"),
        ({"x": np.zeros((8, 2)), "y": np.arange(8) % 2, "x_test": np.zeros((1, 3)), "y_test": [0]}, "3 features"),
        ({"x": np.zeros((8, 2)), "y": np.arange(8) % 2, "x_test": np.zeros((1, 2)), "y_test": [7]}, r"[7]"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_wrong_data_is_told_in_a_line(tmp_path, arrays, message):
    np.savez(tmp_path / "data.npz", **arrays)
    result = train("--data", tmp_path / "data.npz", "--to", tmp_path / "models")
    assert result.exit_code == 1
    assert message in result.output.replace("\n", "")
    assert "Traceback" not in result.output
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--data", "nowhere.npz"], 1, "nowhere.npz does not exist"),
        (["--name", "../up"], 1, "model name '../up' must be"),
        (["--epochs", "0"], 2, "Invalid value for"),
        (["--precision", "int8"], 1, "precision ('int8') must be"),
        (["--device", "tpu"], 1, "device ('tpu') must be 'cpu' or 'cuda'"),
    ],
)
def test_wrong_arguments(tmp_path, monkeypatch, arguments, code, message):
    monkeypatch.chdir(tmp_path)
    result = train(*arguments)
    assert result.exit_code == code
    assert message in result.output


def test_a_finished_run_is_not_trained_again_and_another_is_refused(tmp_path):
    x = np.random.default_rng(0).standard_normal((60, 4)).astype(np.float32)
    np.savez(tmp_path / "sums.npz", x=x, y=x.sum(1))
    options = ["--data", tmp_path / "sums.npz", "--to", tmp_path / "models", "--checkpoints", tmp_path / "state"]
    options += ["--precision", "bfloat16", "--checkpoint-every", 9]
    outputs = []
    for version in ("1", "2"):
        result = train(*options, "--epochs", 3)
        assert result.exit_code == 0, result.output
        path = tmp_path / "models" / "sums" / version / "model.onnx"
        session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
        outputs.append(session.run(None, {session.get_inputs()[0].name: x})[0])
    # trained once; the export may choose other products
    np.testing.assert_allclose(outputs[0], outputs[1], rtol=1e-4, atol=1e-4)
    assert {path.name for path in (tmp_path / "state").iterdir()} == {"settings.pt", "dense", "sketched"}
    refused = train(*options, "--epochs", 3, "--seed", 4)
    assert refused.exit_code == 1
    assert "settings.pt is of a run with seed 0; this one has seed 4" in refused.stderr
    refused = train(*options, "--epochs", 2)
    assert refused.exit_code == 1
    assert "last.pt is of a run with epochs 3; this one has epochs 2" in refused.stderr


def test_two_processes_train_together_and_one_publishes(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "panther.cli", "train", "--epochs", "1", "--threads", "1", "--to", str(tmp_path), "--shard"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, check=False, timeout=200, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [path.parent.name for path in (tmp_path / "digits").glob("*/model.onnx")] == ["1"]
    assert done.stdout.count("test accuracy") == 1


@pytest.mark.parametrize("name", ["rows.npy", "rows.csv", "rows.txt"])
def test_files_that_are_no_npz_are_refused_with_the_way_out(tmp_path, name):
    path = tmp_path / name
    if path.suffix == ".npy":
        np.save(path, np.zeros((4, 3)))
    else:
        path.write_text("a,b,y\n1,2,0\n")
    result = train("--data", path, "--to", tmp_path / "models")
    assert result.exit_code == 1
    assert (
        "is not an .npz file with the arrays 'x' and 'y'; write one by numpy.savez(path, x=rows, y=targets)"
        in result.stderr
    )
    assert "Traceback" not in result.output


@pytest.mark.parametrize("kind", ["regression", "multilabel"])
def test_numbers_and_several_labels_are_trained_and_described(tmp_path, kind):
    x = np.random.default_rng(0).standard_normal((200, 16))
    W = np.random.default_rng(1).standard_normal((16, 3))
    y = 50 * x @ W + 300 if kind == "regression" else (x @ W > 0).astype(np.int64)
    np.savez(tmp_path / "data.npz", x=x, y=y)
    result = train("--data", tmp_path / "data.npz", "--to", tmp_path / "models", "--epochs", 40)
    assert result.exit_code == 0, result.output
    path = tmp_path / "models" / "data" / "1" / "model.onnx"
    card = card_of(path)
    (output,) = card["outputs"]
    assert output["kind"] == kind
    assert output.get("labels") == (None if kind == "regression" else ["0", "1", "2"])
    found = card["training"]["metrics"]
    headline = "test_r2" if kind == "regression" else "test_f1"
    assert found[headline] > 0.7
    assert ("test R²" if kind == "regression" else "test F1") in result.output
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    (made,) = session.run(None, {session.get_inputs()[0].name: x.astype(np.float32)})
    right = (
        1 - ((made - y) ** 2).sum() / ((y - y.mean(0)) ** 2).sum() if kind == "regression" else ((made > 0) == y).mean()
    )
    assert right > 0.7


def test_the_unit_of_a_regression_is_printed_and_in_the_card(tmp_path):
    x = np.random.default_rng(0).standard_normal((60, 4))
    np.savez(tmp_path / "prices.npz", x=x, y=x.sum(1))
    result = train("--data", tmp_path / "prices.npz", "--to", tmp_path / "models", "--epochs", 1, "--unit", "EUR")
    assert result.exit_code == 0, result.output
    assert "test RMSE, EUR" in result.output
    (output,) = card_of(tmp_path / "models" / "prices" / "1" / "model.onnx")["outputs"]
    assert (output["kind"], output["unit"]) == ("regression", "EUR")
    refused = train("--to", tmp_path / "models", "--epochs", 1, "--unit", "EUR")
    assert refused.exit_code == 1
    assert "unit ('EUR') needs targets of a regression; scikit-learn digits" in refused.stderr
