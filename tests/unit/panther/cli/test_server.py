"""Where the server is found, and the sample model."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from panther.cli import server

ROOT = Path(__file__).parents[4]


def installed(place, *folders):
    for folder in folders:
        (place / folder / "app" / "repository").mkdir(parents=True)
        (place / folder / "app" / "application.py").write_text("")
    return place


def test_a_checkout_has_it_beside_the_package():
    assert server.folder() == ROOT


@pytest.mark.parametrize(
    ("folders", "found"),
    [((), None), (("panther_server",), "panther_server"), ((".",), "."), ((".", "panther_server"), "panther_server")],
)
def test_a_wheel_has_it_in_panther_server(tmp_path, folders, found):
    expected = None if found is None else tmp_path / found
    assert server.folder(installed(tmp_path, *folders)) == expected


def test_another_package_called_app_is_not_taken_for_it(tmp_path):
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "__init__.py").write_text("")
    assert server.folder(tmp_path) is None


@pytest.mark.parametrize(("own", "expected"), [(None, "/s"), ("", "/s"), ("/mine", f"/s{os.pathsep}/mine")])
def test_the_server_comes_first_on_the_path(monkeypatch, own, expected):
    monkeypatch.delenv("PYTHONPATH", raising=False)
    if own is not None:
        monkeypatch.setenv("PYTHONPATH", own)
    assert server.python_path(Path("/s")) == expected


def test_the_sample_is_copied_once(tmp_path):
    example = server.copy_sample(tmp_path / "models")
    assert example == tmp_path / "digit.json"
    assert example.read_bytes() == (ROOT / "examples" / "digit.json").read_bytes()
    model = tmp_path / "models" / "digits" / "1" / "model.onnx"
    assert model.read_bytes() == (ROOT / "models" / "digits" / "1" / "model.onnx").read_bytes()
    with pytest.raises(ValueError, match=r"models/digits already exists; name another folder with --to"):
        server.copy_sample(tmp_path / "models")


def test_an_installation_without_a_sample_says_so(tmp_path):
    with pytest.raises(ValueError, match="this installation has no sample model"):
        server.copy_sample(tmp_path / "models", installed(tmp_path, "panther_server"))


def test_the_command_says_what_to_do_next(tmp_path):
    command = [sys.executable, "-m", "panther.cli", "sample"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200"}
    first, second = (
        subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        for _ in range(2)
    )
    assert first.returncode == 0, first.stderr
    assert "panther serve --model-dir models" in first.stdout
    assert "curl -s localhost:8000/predict -d @digit.json" in first.stdout
    assert (second.returncode, second.stderr) == (
        1,
        "error: models/digits already exists; name another folder with --to\n",
    )
