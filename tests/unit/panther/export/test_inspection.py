import io
import json
import subprocess
import sys

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from rich.console import Console
from torch import nn

from panther.export import CARD_KEY, ExportError, inspect_file
from panther.export.inspection import print_inspection
from panther.nn import LowRankEmbedding, SKConv2d, SKLinear


def printed(inspection):
    console = Console(file=io.StringIO(), width=120)
    print_inspection(inspection, console)
    return console.file.getvalue()


def foreign(path, *, metadata=None, op="Relu"):
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node(op, ["h"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 3])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.ones((3, 2), np.float32), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    for key, value in (metadata or {}).items():
        model.metadata_props.add(key=key, value=value)
    path.write_bytes(model.SerializeToString())
    return path


@pytest.fixture
def ours(export):
    model = nn.Sequential(SKLinear(64, 48, 1, 8), SKLinear(48, 48, 1, 4), nn.ReLU(), nn.Linear(48, 10))
    return export(model, torch.randn(4, 64))


def test_a_file_of_ours(ours):
    inspection = inspect_file(ours.path)
    assert json.loads(json.dumps(inspection)) == inspection
    assert inspection["file_bytes"] == ours.file_bytes
    assert inspection["opset"] == {"ai.onnx": 20}
    assert inspection["inputs"] == [{"name": "input", "datatype": "float", "shape": ["batch", 64]}]
    assert inspection["outputs"] == [{"name": "output", "datatype": "float", "shape": ["batch", 10]}]
    constants = [[shape for shape in node["constants"] if len(shape) == 2] for node in inspection["optimized_nodes"]]
    assert constants == [[[64, 8]], [[8, 48]], [[10, 48]]]
    assert "BitwiseAnd" in inspection["operators"]
    assert "BitwiseAnd" not in inspection["optimized_operators"]
    assert inspection["card"]["name"] == "m"
    text = printed(inspection)
    for part in (
        "model 'm'",
        "64→48",
        "x·A·B",
        "merged",
        "runs as",
        "64x8",
        "checked against",
        "plan of 0 + 1: x·A·B",
        "the file saves",
        "allowed",
    ):
        assert part in text


@pytest.mark.filterwarnings("ignore:.*the sketched layer is the larger one:UserWarning")
def test_a_file_with_convolutions(export):
    model = nn.Sequential(SKConv2d(3, 16, 3, 1, 4, terms="output"), nn.ReLU(), SKConv2d(16, 16, 1, 1, 4)).eval()
    report = export(model, torch.randn(2, 3, 9, 9))
    for text in (printed(inspect_file(report.path)), str(report)):
        for part in ("3→16, 3x3", "16→16, 1x1", "output", "both", "x·A·B", "model"):
            assert part in text


def test_a_file_with_embeddings(export):
    model = nn.Sequential(LowRankEmbedding(50, 16, 4), nn.Flatten(), SKLinear(48, 32, 1, 4)).eval()
    report = export(model, torch.randint(0, 50, (2, 3)))
    for text in (printed(inspect_file(report.path)), str(report)):
        for part in ("embedding", "50→16", "lookup", "x·A·B"):
            assert part in text


def test_a_file_with_weights_beside_it(mlp, export):
    report = export(mlp, torch.randn(4, 64), external_data_bytes=0)
    assert inspect_file(report.path)["file_bytes"] == report.file_bytes
    next(report.path.parent.glob("*.data")).unlink()
    inspection = inspect_file(report.path)
    assert inspection["optimized_nodes"] is None
    assert "cannot be loaded: onnxruntime rejects" in printed(inspection)


def test_a_file_of_other_origin(tmp_path):
    inspection = inspect_file(foreign(tmp_path / "foreign.onnx"))
    assert inspection["card"] is None
    assert inspection["weight_bytes"] == 24
    assert inspection["inputs"] == [{"name": "x", "datatype": "float", "shape": ["n", 3]}]
    text = printed(inspection)
    assert "no card" in text
    assert "runs as MatMul 3x2 → Relu" in text


def test_an_operator_that_onnxruntime_does_not_know(tmp_path):
    inspection = inspect_file(foreign(tmp_path / "odd.onnx", op="Imaginary"))
    assert inspection["optimized_operators"] is None
    assert "Imaginary" in inspection["runtime_error"]
    assert inspection["operators"] == {"MatMul": 1, "Imaginary": 1}


@pytest.mark.parametrize(
    ("card", "message"),
    [
        ('{"schema_version": "2.0"}', r"its card has schema version '2\.0'; this panther reads '1\.0'"),
        ('{"schema_version": 3}', "its card has schema version '3'"),
        ("[]", "its card has schema version ''"),
        ("{", "the metadata under 'panther.card' is not JSON"),
    ],
)
def test_cards_that_are_refused(card, message, tmp_path):
    with pytest.raises(ExportError, match=message):
        inspect_file(foreign(tmp_path / "f.onnx", metadata={CARD_KEY: card}))


def test_a_newer_minor_version_is_read(ours, tmp_path):
    model = onnx.load(ours.path)
    card = json.loads(model.metadata_props[0].value) | {"schema_version": "1.9", "unheard": {"of": 1}}
    model.metadata_props[0].value = json.dumps(card)
    (tmp_path / "newer.onnx").write_bytes(model.SerializeToString())
    assert "model 'm'" in printed(inspect_file(tmp_path / "newer.onnx"))


def test_a_card_that_lacks_its_parts_is_told(tmp_path):
    path = foreign(tmp_path / "f.onnx", metadata={CARD_KEY: '{"schema_version": "1.0", "name": "m"}'})
    with pytest.raises(ExportError, match="its card does not follow the schema: KeyError"):
        printed(inspect_file(path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not an ONNX model: its graph has no output"),
        (b"\x00\x01garbage" * 99, "is not an ONNX model"),
        (b"{}\n", "is not an ONNX model"),
    ],
)
def test_garbage(content, message, tmp_path):
    (tmp_path / "g.onnx").write_bytes(content)
    with pytest.raises(ExportError, match=message):
        inspect_file(tmp_path / "g.onnx")


def test_what_is_not_there(tmp_path):
    with pytest.raises(ExportError, match=r"none\.onnx does not exist"):
        inspect_file(tmp_path / "none.onnx")
    with pytest.raises(ExportError, match="cannot be read: Is a directory"):
        inspect_file(tmp_path)


def test_inspect_works_without_torch(ours):
    program = f"""
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {{"torch", "onnxscript", "onnx_ir"}}:
            raise ImportError(f"{{name}} is blocked")
sys.meta_path.insert(0, Blocked())
from panther.cli import main
sys.argv = ["panther", "inspect", {str(ours.path)!r}, "--json"]
main()
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout)["card"]["name"] == "m"


def test_whether_a_server_batches_the_file_is_said(ours, tmp_path):
    found = inspect_file(ours.path)["batching"]
    assert (found["verdict"], list(found["input_axes"].values())) == ("independent", [0])
    x, y = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", 3]) for name in "xy")
    nodes = [onnx.helper.make_node("Softmax", ["x"], ["y"], name="over_rows", axis=0)]
    model = onnx.helper.make_model(
        onnx.helper.make_graph(nodes, "g", [x], [y]), opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8
    )
    onnx.save(model, tmp_path / "mixed.onnx")
    mixed = inspect_file(tmp_path / "mixed.onnx")
    assert (mixed["batching"]["verdict"], mixed["batching"]["node"]) == ("mixed", "over_rows")
    assert "does not batch them: node 'over_rows' normalizes along the batch axis" in printed(mixed).replace("\n", " ")
