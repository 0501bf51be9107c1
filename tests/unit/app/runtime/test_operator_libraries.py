"""Libraries of operators stay in memory, whatever becomes of the sessions that used them."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.build import ROOT
from helpers.operator_libraries import operator_library

from app.runtime.operator_libraries import keep_loaded

RELOADS = """
import gc, shutil, sys
import onnxruntime as ort
import onnxruntime_extensions
from app.runtime.session_choices import SessionChoices

for number in range(1, 11):
    library = shutil.copy(sys.argv[1], f"{sys.argv[2]}/{number}.so")
    options = ort.SessionOptions()
    SessionChoices(custom_ops=(library,)).apply(options)
    session = ort.InferenceSession(sys.argv[3], options, providers=["CPUExecutionProvider"])
    assert session.run(None, {"text": ["abc"]})[0].tolist() == ["ABC"]
    del options, session
    gc.collect()
"""


@pytest.fixture
def library():
    return operator_library()


def test_copies_of_a_library_are_loaded_one_after_the_other(tmp_path, library):
    """As versions of a model with a library each; where the package is imported too, this ended the process."""
    from onnx import TensorProto, helper

    text, upper = (helper.make_tensor_value_info(name, TensorProto.STRING, ["n"]) for name in ("text", "upper"))
    node = helper.make_node("StringUpper", ["text"], ["upper"], domain="ai.onnx.contrib")
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.contrib", 1)]
    model = helper.make_model(helper.make_graph([node], "g", [text], [upper]), opset_imports=opsets, ir_version=8)
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    done = subprocess.run(
        [sys.executable, "-c", RELOADS, library, str(tmp_path), str(path)],
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


def test_a_library_that_was_replaced_is_refused(tmp_path, library):
    path = shutil.copy(library, tmp_path / "libops.so")
    keep_loaded(str(path))
    keep_loaded(str(path))
    Path(shutil.copy(library, tmp_path / "new.so")).replace(path)
    with pytest.raises(ValueError, match=r"was replaced after it was loaded; restart the server, or use another path"):
        keep_loaded(str(path))
    keep_loaded(shutil.copy(library, tmp_path / "another.so"))


def test_what_is_no_library_is_refused(tmp_path):
    (tmp_path / "text.so").write_text("x")
    with pytest.raises(OSError, match=r"text\.so"):
        keep_loaded(str(tmp_path / "text.so"))
