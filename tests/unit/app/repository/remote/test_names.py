import re

import pytest

from app.repository.remote.names import sort_names, why_refused


def test_versions_loose_files_and_what_is_passed_over():
    found = sort_names(
        ["a/1/model.onnx", "a/1/w/data.bin", "a/panther.toml", "a/ops/x.so", "a/v2/model.onnx", "a/", "a/1/", ".git/x"]
    )
    assert found.versions == {"a/1": ["a/1/model.onnx", "a/1/w/data.bin"]}
    assert found.loose == ["a/ops/x.so", "a/panther.toml", "a/v2/model.onnx"]
    assert found.refused == {}


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("../a/1/model.onnx", r"an empty part, '\.' or '\.\.'"),
        ("a/../../etc/passwd", r"an empty part"),
        ("/etc/1/passwd", "an empty part"),
        ("a//1/model.onnx", "an empty part"),
        ("a/./1/model.onnx", "an empty part"),
        ("a/1/..\\..\\model.onnx", "a control character or a backslash"),
        ("a/1/mod\0el.onnx", "a control character"),
        ("a/1/\ud800", "it is not Unicode"),
        ("a/1/" + "x" * 256, "at most 1024 bytes in 16 parts, and each of these at most 255 bytes"),
        ("a/" * 16 + "x", "16 parts"),
        ("digits.onnx", "a model requires folders with its name and version: digits/1/model.onnx"),
        ("-a/1/model.onnx", "its first part is not a valid model name: at most 128 letters"),
    ],
)
def test_names_that_lead_elsewhere_are_refused(name, reason):
    assert re.search(reason, why_refused(name))
    assert set(sort_names([name, "b/1/model.onnx"]).refused) == {name}


def test_a_file_that_is_a_folder_too_is_refused():
    found = sort_names(["a/1", "a/1/model.onnx"])
    assert found.refused == {"a/1": "both a file and a folder have this name"}
    assert found.versions == {"a/1": ["a/1/model.onnx"]}
