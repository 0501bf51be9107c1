"""``panther predict``."""

import numpy as np
import pytest
from helpers import build
from typer.testing import CliRunner

KEY = "predict-key-0123456789"
X = np.random.default_rng(0).standard_normal((3, 6))


@pytest.fixture(scope="module")
def guarded(tiny_dir):
    with build.running(tiny_dir, predict_keys=KEY) as client:
        yield str(client.base_url)


def run(*arguments):
    from panther.cli.commands import app

    return CliRunner().invoke(app, ["predict", *map(str, arguments)])


def test_prints_labels(client, tiny, tmp_path):
    np.save(tmp_path / "rows.npy", X)
    ended = run(client.base_url, "--input", tmp_path / "rows.npy", "--top-k", 2)
    assert ended.exit_code == 0, ended.output
    for i in tiny.probabilities(X).argmax(axis=1):
        assert ["ant", "bee", "cat"][i] in ended.output


def test_writes_outputs_and_json(client, tiny, tmp_path):
    np.save(tmp_path / "rows.npy", X)
    ended = run(client.base_url, "--input", tmp_path / "rows.npy", "--json", "--output", tmp_path / "out.npy")
    assert ended.exit_code == 0
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), tiny.logits(X), rtol=1e-4, atol=1e-5)
    assert '"predictions"' in ended.output


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"--input": "nowhere.npy"}, "nowhere.npy can't be read as a .npy file"),
        ({"--model": "none"}, "model 'none' is not loaded; loaded: tiny"),
        ({"--output": "out.txt"}, "--output (out.txt) must end in .npy or .npz"),
    ],
)
def test_says_what_is_wrong_in_a_line(client, tmp_path, monkeypatch, changes, message):
    monkeypatch.chdir(tmp_path)
    np.save("rows.npy", X)
    options = {"--input": "rows.npy", **changes}
    ended = run(client.base_url, *[part for pair in options.items() for part in pair])
    assert ended.exit_code == 1
    assert message in " ".join(ended.output.split())
    assert "Traceback" not in ended.output


@pytest.mark.parametrize("how", ["flag", "variable"])
def test_sends_a_key(guarded, tmp_path, monkeypatch, how):
    np.save(tmp_path / "rows.npy", X)
    arguments = [guarded, "--input", tmp_path / "rows.npy", "--json"]
    refused = run(*arguments)
    assert refused.exit_code == 1
    assert "an API key is required" in refused.output
    assert "set it with --api-key or PANTHER_API_KEY" in " ".join(refused.output.split())
    if how == "flag":
        arguments += ["--api-key", KEY]
    else:
        monkeypatch.setenv("PANTHER_API_KEY", KEY)
    ended = run(*arguments)
    assert ended.exit_code == 0, ended.output
    assert '"predictions"' in ended.output
    assert KEY not in ended.output
