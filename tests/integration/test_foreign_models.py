"""Files of other tools as they come: classifiers with maps, tensors without a shape, optional inputs, NaN, no rows."""

import io

import numpy as np
import onnx
import pytest
from helpers import build
from onnx import TensorProto, helper, numpy_helper

FLOAT, INT64, STRING = TensorProto.FLOAT, TensorProto.INT64, TensorProto.STRING
WEIGHTS = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)
ROWS = np.random.default_rng(1).standard_normal((5, 4)).astype(np.float32)
NPY = {"content-type": "application/x-npy"}


def model(nodes, inputs, outputs, constants=(), domain_only=False) -> onnx.ModelProto:
    graph = helper.make_graph(nodes, "g", inputs, outputs, constants)
    opsets = [helper.make_opsetid("ai.onnx.ml", 1)] + ([] if domain_only else [helper.make_opsetid("", 17)])
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def value(name, kind, shape):
    return helper.make_tensor_value_info(name, kind, shape)


def classifier(labels, domain_only=True) -> onnx.ModelProto:
    """As skl2onnx writes one: LinearClassifier, and ZipMap behind it."""
    strings = isinstance(labels[0], str)
    named = {"classlabels_strings" if strings else "classlabels_int64s": labels}
    ints = {"classlabels_strings" if strings else "classlabels_ints": labels}
    nodes = [
        helper.make_node(
            "LinearClassifier", ["X"], ["label", "p"], domain="ai.onnx.ml", post_transform="SOFTMAX",
            coefficients=WEIGHTS.T.ravel().tolist(), intercepts=[0.0, 0.0, 0.0], multi_class=1, **ints,
        ),
        helper.make_node("ZipMap", ["p"], ["output_probability"], domain="ai.onnx.ml", **named),
    ]  # fmt: skip
    key = STRING if strings else INT64
    maps = helper.make_sequence_type_proto(helper.make_map_type_proto(key, helper.make_tensor_type_proto(FLOAT, None)))
    outputs = [value("label", key, [None]), helper.make_value_info("output_probability", maps)]
    return model(nodes, [value("X", FLOAT, [None, 4])], outputs, domain_only=domain_only)


def softmax(rows):
    powers = np.exp(rows.astype(np.float64) @ WEIGHTS)
    return powers / powers.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("labels", [["setosa", 'ver"si', "virgïnica"], [0, 1, 2], [-7, 4, 2**40]])
@pytest.mark.parametrize("domain_only", [True, False])
def test_a_classifier_with_maps_answers_labels_and_probabilities_by_class(serve, labels, domain_only):
    client = serve(classifier(labels, domain_only))
    expected = softmax(ROWS)
    best = expected.argmax(axis=1)
    answer = client.post("/predict", json={"inputs": ROWS.tolist()}).json()
    assert answer["outputs"]["label"] == [labels[index] for index in best]
    np.testing.assert_allclose(answer["outputs"]["output_probability"], expected, rtol=1e-4)
    assert [item["label"] for item in answer["predictions"]] == [str(labels[index]) for index in best]
    np.testing.assert_allclose([item["probability"] for item in answer["predictions"]], expected.max(1), rtol=1e-4)
    ranked = client.post("/predict?top_k=3", json={"inputs": ROWS[:1].tolist()}).json()["predictions"][0]["top_k"]
    assert {item["label"] for item in ranked} == {str(label) for label in labels}
    (summary,) = client.get("/models").json()["models"]
    assert [output["labels"] for output in summary["outputs"] if output["labels"]] == [[str(label) for label in labels]]
    tensor = {"name": "X", "shape": [5, 4], "datatype": "FP32", "data": ROWS.ravel().tolist()}
    outputs = client.post("/v2/models/m/infer", json={"inputs": [tensor]}).json()["outputs"]
    assert {item["name"]: item["shape"] for item in outputs} == {"label": [5], "output_probability": [5, 3]}


def unranked() -> onnx.ModelProto:
    nodes = [helper.make_node("MatMul", ["x", "W"], ["y"])]
    return model(nodes, [value("x", FLOAT, None)], [value("y", FLOAT, None)], [numpy_helper.from_array(WEIGHTS, "W")])


def test_an_input_without_a_shape_is_taken_as_it_comes(serve):
    client = serve(unranked())
    assert client.get("/v2/models/m").json()["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1]}]
    for rows in (ROWS, ROWS[0], ROWS.reshape(1, 5, 4)):
        want = rows @ WEIGHTS
        found = client.post("/predict", json={"inputs": rows.tolist()})
        np.testing.assert_allclose(found.json()["outputs"]["y"], want, rtol=1e-4)
        tensor = {"name": "x", "shape": list(rows.shape), "datatype": "FP32", "data": rows.ravel().tolist()}
        found = client.post("/v2/models/m/infer", json={"inputs": [tensor]}).json()["outputs"][0]
        assert found["shape"] == list(want.shape)
        np.testing.assert_allclose(np.reshape(found["data"], want.shape), want, rtol=1e-4)
        body = io.BytesIO()
        np.save(body, rows)
        found = client.post("/predict", content=body.getvalue(), headers=NPY).json()["outputs"]["y"]
        np.testing.assert_allclose(found, want, rtol=1e-4)
    for wrong, match in (([[1, 2], [3]], "all rows must have the same length"), ([[1], 2], "expected a list")):
        answer = client.post("/predict", json={"inputs": wrong})
        assert (answer.status_code, match in answer.json()["error"]) == (400, True), answer.text
    answer = client.post("/predict", content=ROWS.tobytes(), headers={"content-type": "application/octet-stream"})
    assert (answer.status_code, "raw binary has no shape" in answer.json()["error"]) == (400, True)


def test_scalars_stay_scalars(serve):
    client = serve(model([helper.make_node("Neg", ["x"], ["y"])], [value("x", FLOAT, [])], [value("y", FLOAT, [])]))
    assert client.get("/v2/models/m").json()["inputs"][0]["shape"] == []
    assert client.post("/predict", json={"inputs": 2}).json()["outputs"] == {"y": -2.0}
    assert client.post("/predict", json={"inputs": [2]}).status_code == 400


def scaled() -> onnx.ModelProto:
    """x · W · scale, where the file has a scale that a request may replace."""
    nodes = [helper.make_node("MatMul", ["x", "W"], ["p"]), helper.make_node("Mul", ["p", "scale"], ["y"])]
    inputs = [value("x", FLOAT, ["n", 4]), value("scale", FLOAT, [])]
    constants = [numpy_helper.from_array(WEIGHTS, "W"), numpy_helper.from_array(np.float32(2), "scale")]
    return model(nodes, inputs, [value("y", FLOAT, ["n", 3])], constants)


def test_an_optional_input_may_be_given_or_left_out(serve):
    client = serve(scaled(), max_batch_rows=2)
    for scale, given in ((2, {}), (5, {"scale": 5}), (-1, {"scale": -1.0})):
        found = client.post("/predict", json={"inputs": {"x": ROWS.tolist(), **given}})
        assert found.status_code == 200, found.text
        np.testing.assert_allclose(found.json()["outputs"]["y"], ROWS @ WEIGHTS * scale, rtol=1e-4)
        tensors = [{"name": "x", "shape": [5, 4], "datatype": "FP32", "data": ROWS.ravel().tolist()}]
        tensors += [{"name": "scale", "shape": [], "datatype": "FP32", "data": [number]} for number in given.values()]
        data = client.post("/v2/models/m/infer", json={"inputs": tensors}).json()["outputs"][0]["data"]
        np.testing.assert_allclose(np.reshape(data, (5, 3)), ROWS @ WEIGHTS * scale, rtol=1e-4)
    answer = client.post("/predict", json={"inputs": {"scale": 3}})
    assert (answer.status_code, "input 'x' is missing" in answer.json()["error"]) == (400, True)
    tensor = {"name": "scale", "shape": [], "datatype": "FP32", "data": [3]}
    answer = client.post("/v2/models/m/infer", json={"inputs": [tensor]})
    assert (answer.status_code, "input 'x' is missing" in answer.json()["error"]) == (400, True)


def test_optional_inputs_of_one_client_are_not_anothers(tmp_path):
    build.put(tmp_path, scaled(), "m")
    with build.running(tmp_path) as client:
        from concurrent.futures import ThreadPoolExecutor

        def ask(number):
            given = {"scale": number} if number % 2 else {}
            body = {"inputs": {"x": ROWS[:1].tolist(), **given}}
            return client.post("/predict", json=body).json()["outputs"]["y"]

        with ThreadPoolExecutor(16) as pool:
            for number, found in enumerate(pool.map(ask, range(100))):
                want = ROWS[:1] @ WEIGHTS * (number if number % 2 else 2)
                np.testing.assert_allclose(found, want, rtol=1e-4)


@pytest.fixture(scope="module")
def missing(tmp_path_factory):
    """A model that says where numbers are missing or endless."""
    nodes = [
        helper.make_node("IsNaN", ["x"], ["is_nan"]),
        helper.make_node("IsInf", ["x"], ["is_inf"]),
    ]
    outputs = [value("is_nan", TensorProto.BOOL, ["n", 4]), value("is_inf", TensorProto.BOOL, ["n", 4])]
    root = tmp_path_factory.mktemp("missing")
    build.put(root, model(nodes, [value("x", FLOAT, ["n", 4])], outputs), "m")
    with build.running(root) as client:
        yield client


ODD = np.array([[1, np.nan, np.inf, -np.inf]], np.float32)


def test_nan_and_infinities_are_taken_where_the_caller_asks_for_it(missing):
    npy = io.BytesIO()
    np.save(npy, ODD)
    bodies = [
        (b'{"inputs": [[1, null, "Infinity", "-Infinity"]]}', "application/json"),
        (b'{"inputs": [[1, "NaN", "Infinity", "-Infinity"]]}', "application/json"),
        (npy.getvalue(), "application/x-npy"),
        (ODD.tobytes(), "application/octet-stream"),
    ]
    for body, kind in bodies:
        answer = missing.post("/predict?nan=allow", content=body, headers={"content-type": kind})
        assert answer.status_code == 200, answer.text
        assert answer.json()["outputs"] == {
            "is_nan": [[False, True, False, False]],
            "is_inf": [[False, False, True, True]],
        }
        for query in ("", "?nan=refuse"):
            assert missing.post(f"/predict{query}", content=body, headers={"content-type": kind}).status_code == 400
    tensor = {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, None, "Infinity", "-Infinity"]}
    answer = missing.post("/v2/models/m/infer", json={"inputs": [tensor], "parameters": {"nan": "allow"}})
    assert answer.json()["outputs"][0]["data"] == [False, True, False, False]
    assert missing.post("/v2/models/m/infer", json={"inputs": [tensor]}).status_code == 400


@pytest.mark.parametrize(
    ("body", "match"),
    [
        ('{"inputs": [[1, "nothing", 2, 3]]}', "is the string 'nothing'; expected a number"),
        ('{"inputs": [[1, 1e39, 2, null]]}', r"1e+39, beyond what FP32 can hold"),
        ('{"inputs": [[1, true, 2, null]]}', "is true; expected a number"),
        ('{"inputs": [[1, NaN, 2, 3]]}', "?nan=allow"),
    ],
)
def test_what_is_no_number_is_refused_all_the_same(missing, body, match):
    answer = missing.post("/predict?nan=allow", content=body)
    assert (answer.status_code, match in answer.json()["error"]) == (400, True), answer.text


def test_an_unknown_value_of_nan_is_named(missing):
    answer = missing.post("/predict?nan=yes", json={"inputs": [[1, 2, 3, 4]]})
    assert answer.json() == {"error": "query parameter nan is 'yes'; expected allow or refuse"}


def test_no_rows_in_no_rows_out(tmp_path, tiny):
    build.put(tmp_path, tiny.graph(), "m", card=build.sketched_card(name="m"))
    with build.running(tmp_path) as client:
        answer = client.post("/predict", json={"inputs": []})
        assert answer.status_code == 200, answer.text
        assert answer.json() == {"model": "m", "version": "1", "outputs": {"logits": []}, "predictions": []}
        tensor = {"name": "x", "shape": [0, 6], "datatype": "FP32", "data": []}
        output = client.post("/v2/models/m/infer", json={"inputs": [tensor]}).json()["outputs"][0]
        assert (output["shape"], output["data"]) == ([0, 3], [])
        body = io.BytesIO()
        np.save(body, np.zeros((0, 6), np.float32))
        found = client.post("/predict", content=body.getvalue(), headers={**NPY, "accept": "application/x-npy"})
        assert np.load(io.BytesIO(found.content)).shape == (0, 3)
        assert client.post("/predict", json={"inputs": [[0.0] * 6]}).status_code == 200


def test_no_rows_are_refused_where_no_trial_has_shown_that_the_model_takes_them(tmp_path, tiny):
    build.put(tmp_path, tiny.graph(), "m")
    with build.running(tmp_path, trial_load_s=0) as client:
        answer = client.post("/predict", json={"inputs": []})
        assert (answer.status_code, "at least 1 is required" in answer.json()["error"]) == (400, True)


def test_empty_inner_axes(serve):
    node = helper.make_node("ReduceSum", ["x", "axes"], ["y"], keepdims=0)
    axes = numpy_helper.from_array(np.array([1], np.int64), "axes")
    client = serve(model([node], [value("x", FLOAT, ["n", "k"])], [value("y", FLOAT, ["n"])], [axes]))
    assert client.post("/predict", json={"inputs": [[], []]}).json()["outputs"] == {"y": [0.0, 0.0]}
    tensor = {"name": "x", "shape": [2, 0], "datatype": "FP32", "data": []}
    output = client.post("/v2/models/m/infer", json={"inputs": [tensor]}).json()["outputs"][0]
    assert (output["shape"], output["data"]) == ([2], [0.0, 0.0])


def test_texts_are_normalized_on_a_machine_without_the_locale_en_us(serve):
    """As slim images are: onnxruntime asks for en_US.UTF-8 where a model names none."""
    nodes = [
        helper.make_node("StringNormalizer", ["x"], ["low"], case_change_action="LOWER", is_case_sensitive=0),
        helper.make_node(
            "TfIdfVectorizer", ["low"], ["y"], min_gram_length=1, max_gram_length=1, max_skip_count=0, mode="TF",
            ngram_counts=[0], ngram_indexes=[0, 1], pool_strings=["größe", "cat"],
        ),
    ]  # fmt: skip
    client = serve(model(nodes, [value("x", STRING, ["n"])], [value("y", FLOAT, [2])]))
    answer = client.post("/predict", json={"inputs": ["GRÖSSE", "Größe", "CAT", "cat"]})
    assert answer.json()["outputs"] == {"y": [1.0, 2.0]}, answer.text


def test_a_classifier_of_texts_needs_neither_the_locale_nor_maps(serve):
    """As a pipeline of TfidfVectorizer and LogisticRegression comes from skl2onnx."""
    made = classifier(["cold", "warm", "hot"], domain_only=False)
    nodes = [
        helper.make_node("StringNormalizer", ["x"], ["low"], case_change_action="LOWER", is_case_sensitive=0),
        helper.make_node(
            "TfIdfVectorizer", ["low"], ["X"], min_gram_length=1, max_gram_length=1, max_skip_count=0, mode="TF",
            ngram_counts=[0], ngram_indexes=[0, 1, 2, 3], pool_strings=["a", "b", "c", "d"],
        ),
    ]  # fmt: skip
    flat = helper.make_node("Reshape", ["X", "shape"], ["rows"])
    made.graph.node[0].input[0] = "rows"
    inputs = [value("x", STRING, ["n"])]
    constants = [numpy_helper.from_array(np.array([1, 4], np.int64), "shape")]
    client = serve(model([*nodes, flat, *made.graph.node], inputs, list(made.graph.output), constants))
    answer = client.post("/predict", json={"inputs": ["A", "b", "B"]})
    expected = softmax(np.array([[1, 2, 0, 0]], np.float32))
    np.testing.assert_allclose(answer.json()["outputs"]["output_probability"], expected, rtol=1e-4)
