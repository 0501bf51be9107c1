"""What a file that is no model probably is, and what to do."""

from pathlib import Path

import pytest
from helpers import build

from app.errors import LoadError
from app.runtime.device import CPU, Device
from app.runtime.model import OnnxModel
from app.runtime.recognition import why_no_model

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
DIGITS = Path(__file__).parents[4] / "models" / "digits" / "1" / "model.onnx"
CASES = {
    "empty": (b"", "the file is empty"),
    "lfs": (LFS, "the file is a Git LFS pointer, not the model; fetch the model with 'git lfs pull'"),
    "html": (b"\n<!DOCTYPE html>\n<html><body>Sign in</body></html>", "the file is an HTML page"),
    "torch": (b"PK\x03\x04" + bytes(100), "the file is a ZIP archive, probably written by torch.save"),
    "pickle": (b"\x80\x04\x95" + bytes(100), "the file is a Python pickle"),
    "gzip": (b"\x1f\x8b\x08" + bytes(100), "compressed by gzip; unpack it"),
    "json": (b'{"error": "not found"}', "the file is JSON"),
    "half": (
        DIGITS.read_bytes()[: DIGITS.stat().st_size // 2],
        "in the middle of the model; copy or download it again",
    ),
}


@pytest.mark.parametrize("kind", CASES)
def test_a_file_that_is_no_model_is_recognised(tmp_path, kind):
    content, match = CASES[kind]
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    assert match in why_no_model(path)
    with pytest.raises(LoadError) as caught:
        OnnxModel("m", "1", path, Device("cpu", (CPU,)), 1)
    assert str(caught.value).startswith("model 'm' version 1: the file ")
    assert not str(caught.value).endswith("\n")


def test_a_model_is_none_of_them(tmp_path, tiny):
    assert why_no_model(build.put(tmp_path, tiny.graph(), "m")) is None
    assert why_no_model(DIGITS) is None
    assert why_no_model(tmp_path / "nothing.onnx") is None


def test_no_message_ends_in_a_newline(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"rubbish")
    with pytest.raises(LoadError) as caught:
        OnnxModel("m", "1", tmp_path / "model.onnx", Device("cpu", (CPU,)), 1)
    assert str(caught.value) == str(caught.value).rstrip()
