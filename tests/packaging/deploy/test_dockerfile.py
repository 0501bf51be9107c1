"""The Dockerfile, by hadolint; needs no engine."""

import subprocess
import sys
from pathlib import Path

import pytest

from app.runtime.rewriting import with_locale


def hadolint(path):
    program = Path(sys.executable).with_name("hadolint")
    return subprocess.run([program, "--no-color", path], check=False, capture_output=True, text=True)


def test_hadolint_has_nothing_to_say(root):
    answer = hadolint(root / "Dockerfile")
    assert (answer.returncode, answer.stdout + answer.stderr) == (0, "")


def test_hadolint_would_say_something(tmp_path):
    bad = tmp_path / "Dockerfile"
    bad.write_text("FROM python:latest\nRUN cd /tmp && pip install numpy\n")
    answer = hadolint(bad)
    assert answer.returncode == 1
    assert {"DL3007", "DL3003", "DL3013"} <= {word for line in answer.stdout.splitlines() for word in line.split()}


def test_the_server_for_the_cpu_is_what_is_built_where_no_target_is_named(root):
    stages = [line.split()[-1] for line in (root / "Dockerfile").read_text().splitlines() if line.startswith("FROM ")]
    assert stages[-1] == "cpu"
    assert {"cpu", "gpu", "train"} <= set(stages)


@pytest.mark.parametrize(("name", "there"), [("C.UTF-8", True), ("xx_YY.UTF-8", False)])
def test_the_build_of_the_image_looks_for_the_locale_of_models_of_texts(root, name, there):
    code = f"import check; check.require_locale({name!r})"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root / "deploy/image", capture_output=True, text=True, check=False
    )
    said = "" if there else f"the locale {name} is not in the image; models of texts need it\n"
    assert (done.returncode, done.stderr) == (0 if there else 1, said)


def test_the_locale_that_the_image_has_is_the_one_that_models_of_texts_get(root):
    from onnx import helper

    node = helper.make_node("StringNormalizer", ["x"], ["y"], case_change_action="LOWER")
    model = helper.make_model(helper.make_graph([node], "g", [], []))
    assert b"C.UTF-8" in with_locale(model.SerializeToString())
    dockerfile = (root / "Dockerfile").read_text()
    assert dockerfile.count("LANG=C.UTF-8") == 2  # the server, and training
