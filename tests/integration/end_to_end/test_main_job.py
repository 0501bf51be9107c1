"""Train, export, serve, ask: the whole of it on real data, by the commands that a user types."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch

from panther.train import load_digits

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def digits():
    return load_digits(seed=0)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a model trained for a few epochs, and what the command printed."""
    folder = tmp_path_factory.mktemp("models")
    command = [sys.executable, "-m", "panther.cli", "train", "--to", str(folder), "--epochs", "12"]
    command += ["--threads", "1"]  # two on two cores that others use too wait for each other at every product
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)
    assert ended.returncode == 0, ended.stderr
    return folder, ended.stdout


def test_the_printed_table_has_both_networks(trained):
    lines = trained[1].splitlines()

    def row(name):
        return [cell.strip() for cell in next(line for line in lines if name in line).split("│")[2:4]]

    # 784→512 L2 k64, 512→256 L2 k32, 256→10 L1 k4, by hand: dense 401920 + 131328 + 2570
    assert row("learnable parameters") == ["535,818", "216,882"]
    assert row("fixed parameters") == ["0", "216,104"]
    assert row("stored parameters") == ["535,818", "432,986"]
    dense, sketched = (float(cell.removesuffix("%")) for cell in row("test accuracy"))
    assert dense > 93
    assert sketched > 90


def test_the_file_that_training_wrote_is_served_and_right(trained, digits, serve):
    folder, _ = trained
    rows = digits.test_x.numpy()
    with serve(folder) as address:
        answer = httpx.post(f"{address}/predict", json={"inputs": rows.tolist()}, timeout=60)
        assert answer.status_code == 200, answer.text
        stats = httpx.get(f"{address}/models/digits/stats", timeout=60).json()["models"][0]
    body = answer.json()
    assert (body["model"], body["version"]) == ("digits", "1")
    logits = np.array(body["outputs"]["logits"])
    assert logits.shape == (450, 10)
    predicted = np.array([int(row["label"]) for row in body["predictions"]])
    np.testing.assert_array_equal(predicted, logits.argmax(axis=1))
    probabilities = torch.softmax(torch.from_numpy(logits), dim=1).amax(dim=1).numpy()
    np.testing.assert_allclose([row["probability"] for row in body["predictions"]], probabilities, atol=1e-5)
    accuracy = float((predicted == digits.test_y.numpy()).mean())
    assert accuracy == pytest.approx(stats["training"]["metrics"]["test_accuracy"], abs=1e-6)


def test_stats_of_the_shipped_model_equal_the_formulas(shipped):
    stats = httpx.get(f"{shipped}/models/digits/stats", timeout=60).json()["models"][0]
    dense = learnable = fixed = 0
    assert len(stats["layers"]) == 3
    for layer in stats["layers"]:
        d_in, d_out, L, k = (layer[name] for name in ("in_features", "out_features", "num_terms", "low_rank"))
        counts = layer["parameters"]
        assert counts["dense"] == d_in * d_out + d_out
        assert counts["learnable"] == L * k * (d_in + d_out) + d_out
        assert counts["fixed"] == L * k * (d_in + d_out)
        reductions = counts["reduction_percent"]
        assert reductions["learnable"] == pytest.approx(100 * (1 - counts["learnable"] / counts["dense"]), abs=0.01)
        stored = counts["learnable"] + counts["fixed"]
        assert reductions["learnable_and_fixed"] == pytest.approx(100 * (1 - stored / counts["dense"]), abs=0.01)
        dense, learnable, fixed = dense + counts["dense"], learnable + counts["learnable"], fixed + counts["fixed"]
    totals = stats["totals"]["model"]
    assert (
        (totals["dense"], totals["learnable"], totals["fixed"]) == (dense, learnable, fixed) == (535818, 216882, 216104)
    )
    file = ROOT / "models" / "digits" / stats["version"] / "model.onnx"
    assert stats["bytes"]["file_bytes"] == file.stat().st_size
    assert stats["bytes"]["dense_twin_weight_bytes"] == 4 * dense


def test_the_compressed_model_shows_the_gain(shipped):
    stats = httpx.get(f"{shipped}/models/digits-small/stats", timeout=60).json()["models"][0]
    file = ROOT / "models" / "digits-small" / stats["version"] / "model.onnx"
    assert stats["bytes"]["file_bytes"] == file.stat().st_size < 100_000
    dense = sum(d_in * d_out + d_out for d_in, d_out in ((784, 1024), (1024, 1024), (1024, 10)))
    assert stats["totals"]["model"]["dense"] == dense
    assert stats["bytes"]["dense_twin_weight_bytes"] == 4 * dense
    assert stats["totals"]["model"]["learnable"] < dense / 20
    assert max(stats["latency"]["ratio_to_dense_twin"]) < 0.4


def test_requests_without_a_name_go_to_the_model_of_the_tutorial(shipped, digits):
    assert (
        httpx.post(f"{shipped}/predict", json={"inputs": digits.test_x[:1].tolist()}, timeout=60).json()["model"]
        == "digits"
    )


@pytest.mark.parametrize("name", ["digits", "digits-small"])
def test_the_shipped_models_are_as_good_as_their_cards_say(shipped, digits, name):
    """The card's accuracy is that of the very file, on the very rows that its training held out."""
    rows = digits.test_x.numpy().tolist()
    answer = httpx.post(f"{shipped}/models/{name}/predict", json={"inputs": rows}, timeout=60).json()
    right = [int(row["label"]) == int(y) for row, y in zip(answer["predictions"], digits.test_y, strict=True)]
    training = httpx.get(f"{shipped}/models/{name}/stats", timeout=60).json()["models"][0]["training"]
    sketched, dense = (training[key]["test_accuracy"] for key in ("metrics", "dense_twin_metrics"))
    assert sum(right) / len(right) == pytest.approx(sketched, abs=1e-6)
    assert sketched >= 0.97
    assert dense - sketched <= 0.01


def test_panther_does_not_import_the_server():
    for path in sorted((ROOT / "panther").rglob("*.py")):
        lines = path.read_text().splitlines()
        assert not [line for line in lines if line.strip().startswith(("import app", "from app"))], path


def test_example_digit_is_a_held_out_row(digits):
    inputs = json.loads(Path(ROOT / "examples" / "digit.json").read_text())["inputs"]
    np.testing.assert_allclose(np.array(inputs), digits.test_x[:1].numpy(), atol=5.1e-5)
