"""Rows by the names of their columns, to a real server: records, columns, pandas' split, CSV, and the client."""

import csv
import io
import json

import numpy as np
import pytest
from helpers import build
from onnx import TensorProto, helper
from typer.testing import CliRunner

from panther_client import Client
from panther_client.errors import InvalidRequestError

NAMES = ["length", "width", "weight", "age", "colour", "tame"]
CARD = build.sketched_card(
    inputs=[
        {
            "name": "x",
            "columns": [
                {"name": "length", "unit": "cm"},
                {"name": "width", "type": "number", "description": "at its widest"},
                {"name": "weight"},
                {"name": "age", "type": "integer", "unit": "days"},
                {"name": "colour", "type": "category", "categories": ["black", "red", "brown"]},
                {"name": "tame", "type": "boolean"},
            ],
            "sample_rows": [[1.5, 0.25, 2, 7, "red", True]],
        }
    ]
)
ROWS = [[1.5, 0.25, 2.0, 7, "red", True], [3.0, -1.0, 0.5, 12, "brown", False]]
CODED = np.array([[1.5, 0.25, 2, 7, 1, 1], [3, -1, 0.5, 12, 2, 0]])


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    root = tmp_path_factory.mktemp("tables")
    tiny = build.Tiny()
    build.put(root, tiny.graph(), "animals", card=CARD)
    build.put(root, sums(), "sums")
    build.put(root, tiny.graph(), "bare")
    with build.running(root, default_model="animals") as client:
        yield client


def sums():
    """A model such as sklearn-onnx makes: an input a column, of several types."""
    nodes = [
        helper.make_node("Cast", ["age"], ["a"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["length", "a"], ["sum"]),
    ]
    return build.onnx_model(
        nodes,
        [("length", TensorProto.FLOAT, ["n", 1]), ("age", TensorProto.INT64, ["n", 1])],
        [("sum", TensorProto.FLOAT, ["n", 1])],
        [],
    )


def text_of(rows, names=NAMES):
    stream = io.StringIO()
    csv.writer(stream).writerows([names, *rows])
    return stream.getvalue()


def expected():
    return build.Tiny().logits(CODED)


RECORDS = [dict(zip(NAMES, row, strict=True)) for row in ROWS]


@pytest.mark.parametrize(
    "body",
    [
        RECORDS,
        {"inputs": [dict(reversed(record.items())) for record in RECORDS]},
        {"inputs": {name: [row[i] for row in ROWS] for i, name in enumerate(NAMES)}},
        {"columns": NAMES, "index": [0, 1], "data": ROWS},
    ],
    ids=["records", "inputs", "columns", "split"],
)
def test_json_tables_answer_as_rows_do(client, body):
    answer = client.post("/predict", json=body)
    assert answer.status_code == 200, answer.text
    np.testing.assert_allclose(answer.json()["outputs"]["logits"], expected(), rtol=1e-4, atol=1e-4)
    assert len(answer.json()["predictions"]) == 2


def test_csv_in_and_out(client):
    headers = {"content-type": "text/csv; charset=utf-8", "accept": "text/csv"}
    answer = client.post("/predict", content=text_of(ROWS), headers=headers)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/csv; charset=utf-8")
    names, *rows = csv.reader(io.StringIO(answer.text, newline=""))
    assert names == ["label", "probability", "logits[ant]", "logits[bee]", "logits[cat]"]
    np.testing.assert_allclose(np.array([row[2:] for row in rows], float), expected(), rtol=1e-4, atol=1e-4)
    best = expected().argmax(axis=1)
    assert [row[0] for row in rows] == [["ant", "bee", "cat"][index] for index in best]


def test_no_rows_are_answered_with_none(client):
    headers = {"content-type": "text/csv", "accept": "text/csv"}
    answer = client.post("/predict", content=text_of([]), headers=headers)
    assert (answer.status_code, answer.text) == (200, "label,probability,logits[ant],logits[bee],logits[cat]\r\n")
    assert client.post("/models/bare/predict", content="", headers=headers).text == "logits[0],logits[1],logits[2]\r\n"


def test_many_rows_are_read_by_the_other_process_and_answer_alike(client):
    many = ROWS * 30_000
    text = text_of(many)
    assert len(text) > 2**20
    headers = {"content-type": "text/csv", "accept": "application/x-npy"}
    answer = client.post("/predict", content=text, headers=headers)
    assert answer.status_code == 200, answer.text
    found = np.load(io.BytesIO(answer.content))
    np.testing.assert_allclose(found, np.tile(expected(), (30_000, 1)), rtol=1e-4, atol=1e-4)
    wrong = client.post("/predict", content=text.replace("brown", "green"), headers=headers)
    message = "line 3, column 'colour', is the string 'green'; expected one of: black, red, brown"
    assert (wrong.status_code, wrong.json()["error"]) == (400, message)


def test_a_model_of_an_input_a_column_takes_tables_without_a_card(client):
    for body in (
        [{"length": 1.5, "age": 2.0}, {"age": 3, "length": 2}],
        {"inputs": {"length": [1.5, 2], "age": [2, 3]}},
        {"inputs": {"length": [[1.5], [2]], "age": [[2], [3]]}},
    ):
        answer = client.post("/models/sums/predict", json=body)
        assert answer.json()["outputs"] == {"sum": [[3.5], [5.0]]}
    answer = client.post(
        "/models/sums/predict",
        content="age,length\n2,1.5\n",
        headers={"content-type": "text/csv", "accept": "text/csv"},
    )
    assert answer.text == "sum\r\n3.5\r\n"
    wrong = client.post("/models/sums/predict", json=[{"length": 1.5, "age": 2.5}])
    assert (wrong.status_code, wrong.json()["error"]) == (400, "[0].age is 2.5; expected a whole number")


def test_a_model_without_names_takes_csv_of_numbers(client):
    headers = {"content-type": "text/csv"}
    answer = client.post(
        "/models/bare/predict", content="\n".join(",".join(map(str, row)) for row in CODED), headers=headers
    )
    np.testing.assert_allclose(answer.json()["outputs"]["logits"], expected(), rtol=1e-4, atol=1e-4)
    named = client.post("/models/bare/predict", content=text_of(CODED.tolist()), headers=headers)
    assert (named.status_code, "has no column names" in named.json()["error"]) == (400, True)


def test_columns_and_sample_rows_are_told(client):
    (described,) = client.get("/models/animals").json()["inputs"]
    assert [column["name"] for column in described["columns"]] == NAMES
    assert described["columns"][4] == {
        "name": "colour",
        "type": "category",
        "description": None,
        "unit": None,
        "categories": ["black", "red", "brown"],
    }
    (sample,) = described["sample_rows"]
    answer = client.post("/predict", json=[dict(zip(NAMES, sample, strict=True))])
    np.testing.assert_allclose(answer.json()["outputs"]["logits"], expected()[:1], rtol=1e-4, atol=1e-4)


# As MLServer 1.7.1 writes them: PandasCodec.encode_request, NumpyCodec.encode_input, NumpyRequestCodec.encode_request.
PANDAS = {
    "parameters": {"content_type": "pd"},
    "inputs": [
        {"name": "age", "shape": [2, 1], "datatype": "INT64", "data": [7, 12]},
        {"name": "length", "shape": [2, 1], "datatype": "FP64", "data": [1.5, 3.0]},
        {"name": "width", "shape": [2, 1], "datatype": "FP64", "data": [0.25, -1.0]},
        {"name": "weight", "shape": [2, 1], "datatype": "FP64", "data": [2.0, 0.5]},
        {"name": "tame", "shape": [2, 1], "datatype": "BOOL", "data": [True, False]},
        {
            "name": "colour",
            "shape": [2, 1],
            "datatype": "BYTES",
            "parameters": {"content_type": "str"},
            "data": ["red", "brown"],
        },
    ],
}
TENSOR = {"shape": [2, 6], "datatype": "FP64", "parameters": {"content_type": "np"}, "data": CODED.reshape(-1).tolist()}


@pytest.mark.parametrize(
    "body",
    [
        PANDAS,
        {"inputs": [{"name": "x", **TENSOR}]},
        {"parameters": {"content_type": "np"}, "inputs": [{"name": "input-1", **TENSOR}]},
    ],
    ids=["pandas", "tensor", "request"],
)
def test_mlservers_codecs_are_understood(client, body):
    answer = client.post("/v2/models/animals/infer", json=body)
    assert answer.status_code == 200, answer.text
    (output,) = answer.json()["outputs"]
    np.testing.assert_allclose(np.reshape(output["data"], output["shape"]), expected(), rtol=1e-4, atol=1e-4)


def test_whole_numbers_are_cast_for_v2_where_nothing_is_lost(client):
    length = {"name": "length", "shape": [1, 1], "datatype": "INT64", "data": [2], "parameters": {"content_type": "np"}}
    age = {"name": "age", "shape": [1, 1], "datatype": "FP64", "data": [3.0], "parameters": {"content_type": "np"}}
    answer = client.post("/v2/models/sums/infer", json={"inputs": [length, age]})
    assert answer.json()["outputs"][0]["data"] == [5.0]
    wrong = client.post("/v2/models/sums/infer", json={"inputs": [length, {**age, "data": [3.5]}]})
    assert (wrong.status_code, "inputs.age.data[0] is 3.5; expected an integer" in wrong.text) == (400, True)
    strict = client.post("/v2/models/sums/infer", json={"inputs": [length, {**age, "parameters": {}}]})
    assert (strict.status_code, "input 'age' has datatype 'FP64'; expected INT64" in strict.text) == (400, True)


def test_binary_tensors_of_another_type_are_cast(client):
    content = CODED.astype(np.float64).tobytes()
    head = {"name": "x", "shape": [2, 6], "datatype": "FP64"}
    head["parameters"] = {"content_type": "np", "binary_data_size": len(content)}
    text = json.dumps({"inputs": [head]}).encode()
    for _ in range(2):  # the second time the JSON header is remembered
        answer = client.post(
            "/v2/models/animals/infer",
            content=text + content,
            headers={"Inference-Header-Content-Length": str(len(text))},
        )
        (output,) = answer.json()["outputs"]
        np.testing.assert_allclose(np.reshape(output["data"], output["shape"]), expected(), rtol=1e-4, atol=1e-4)


class Frame:
    """As much of a pandas DataFrame as the client looks at."""

    columns = NAMES

    def to_dict(self, orient):
        assert orient == "list"
        return {name: np.array([row[i] for row in ROWS], dtype=object).tolist() for i, name in enumerate(NAMES)}


def test_the_client_sends_tables(client):
    with Client(str(client.base_url)) as own:
        for table in (
            RECORDS,
            {name: [row[i] for row in ROWS] for i, name in enumerate(NAMES)},
            text_of(ROWS),
            Frame(),
        ):
            found = own.predict(table)
            np.testing.assert_allclose(found.outputs["logits"], expected(), rtol=1e-4, atol=1e-4)
        assert own.predict([{"length": np.float32(1.5), "age": np.int64(2)}], model="sums").outputs["sum"] == 3.5
        with pytest.raises(InvalidRequestError, match="can't be sent as JSON"):
            own.predict([{"length": float("nan"), "age": 2}], model="sums")
        with pytest.raises(InvalidRequestError, match="lacks the column 'age'"):
            own.predict([{"length": 2}], model="sums")


def test_the_command_reads_csv_and_json(client, tmp_path):
    from panther.cli.commands import app

    (tmp_path / "rows.csv").write_text(text_of(ROWS))
    (tmp_path / "rows.json").write_text(json.dumps({"inputs": RECORDS}))
    for name in ("rows.csv", "rows.json"):
        ended = CliRunner().invoke(app, ["predict", str(tmp_path / name), "--url", str(client.base_url), "--json"])
        assert ended.exit_code == 0, ended.output
        np.testing.assert_allclose(json.loads(ended.output)["outputs"]["logits"], expected(), rtol=1e-4, atol=1e-4)
    for arguments, message in (
        ([str(tmp_path / "rows.xlsx")], "must end in .csv, .npy or .json"),
        ([str(client.base_url)], "needs the rows: --input FILE"),
        (["a.csv", "--input", "b.csv"], "are two files; give one"),
    ):
        ended = CliRunner().invoke(app, ["predict", *arguments])
        assert (ended.exit_code, message in " ".join(ended.output.split())) == (1, True), ended.output
