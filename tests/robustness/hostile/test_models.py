"""Model files that are damaged or mean harm: the server says no, and goes on serving what it served.

The number of damaged files is small here; ``make fuzz`` sets HOSTILE_FILES and tries them all.
"""

import json
import os
import random
import threading
import time

import numpy as np
import onnx
import pytest
from helpers import hostile
from onnx import TensorProto, helper, numpy_helper

FILES = int(os.environ.get("HOSTILE_FILES", "24"))
FLOAT = TensorProto.FLOAT


@pytest.fixture(scope="module")
def digits():
    """The model that comes with the project."""
    return (hostile.ROOT / "models" / "digits" / "1" / "model.onnx").read_bytes()


def test_files_truncated_at_every_kilobyte(server, digits):
    """All of them with HOSTILE_FILES over their number, else as many, evenly spread."""
    cuts = [0, 1, 100, *range(1024, len(digits), 1024)]
    step = max(1, len(cuts) // FILES)
    chosen = {*cuts[:3], *cuts[3::step], len(digits) - 1}
    print(f"\nfuzz: truncated={len(chosen)}")
    for cut in chosen:
        server.put("cut", digits[:cut])
        assert not server.assert_tame("cut"), cut


def test_flipped_bits(server, digits):
    rng = random.Random(0)
    small = hostile.product(hostile.matrix()).SerializeToString()
    loaded = 0
    for number in range(FILES):
        # Most of a large file is weights, which may have any bits; a small one is all structure.
        content = bytearray(digits if number % 4 == 0 else small)
        for _ in range(rng.choice((1, 1, 2, 8))):
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        server.put("flipped", bytes(content))
        loaded += server.assert_tame("flipped")
    print(f"\nfuzz: flipped={FILES}\nfuzz: flipped_and_loaded={loaded}")
    assert loaded < FILES


def external(location, dims=(4, 3), **entries):
    tensor = TensorProto(name="W", data_type=FLOAT, dims=dims, data_location=TensorProto.EXTERNAL)
    for key, value in {"location": location, **entries}.items():
        tensor.external_data.add(key=key, value=str(value))
    return hostile.model(
        [helper.make_node("MatMul", ["x", "W"], ["y"])],
        [("x", FLOAT, ["n", dims[0]])],
        [("y", FLOAT, ["n", dims[1]])],
        [tensor],
    )


@pytest.fixture(scope="module")
def secret(server):
    """A file outside of every model's folder, which a model would like to read."""
    path = server.models.parent / "secret.bin"
    path.write_bytes(np.arange(12, dtype=np.float32).tobytes())
    return path


@pytest.mark.parametrize(
    "location",
    ["../../../secret.bin", "{secret}", "link.bin", "folder/../../../../secret.bin", "/etc/passwd", "/dev/zero", ""],
)
def test_weights_outside_of_the_folder(server, secret, location):
    path = server.put("thief", external(location.format(secret=secret)).SerializeToString())
    (path.parent / "folder").mkdir(exist_ok=True)
    if location == "link.bin" and not (path.parent / location).is_symlink():
        (path.parent / location).symlink_to(secret)
    server.assert_refused("thief", r"escapes model directory|Absolute path not allowed|cannot be empty|does not exist")


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"dims": (4, 300)}, "out of bounds|can not be read in full|size"),
        ({"offset": 10**18}, "out of bounds|can not be read in full|size|offset"),
        ({"offset": -8}, "out of bounds|can not be read in full|offset"),
        ({"length": 4}, "mismatch"),
        ({"dims": (2**40, 2**40)}, "overflow"),
    ],
)
def test_external_weights_that_are_not_what_the_file_says(server, changes, match):
    path = server.put("short", external("w.bin", **changes).SerializeToString())
    (path.parent / "w.bin").write_bytes(bytes(48))
    server.assert_refused("short", match)


def test_weights_that_are_cut_while_they_are_served(server):
    """A mapped file would end the process here (SIGBUS)."""
    table = hostile.matrix(20_000, 64)
    made = hostile.model(
        [helper.make_node("Gather", ["E", "x"], ["y"])],
        [("x", TensorProto.INT64, ["n"])],
        [("y", FLOAT, ["n", 64])],
        [numpy_helper.from_array(table, "E")],
    )
    path = server.models / "table" / "1" / "model.onnx"
    path.parent.mkdir(parents=True)
    onnx.save(made, path, save_as_external_data=True, location="model.onnx.data", size_threshold=0)
    assert server.load("table").status_code == 200
    data = path.with_name("model.onnx.data")
    assert data.stat().st_size >= table.nbytes
    data.write_bytes(bytes(100))
    rows = [0, 9_999, 19_999]
    item = {"name": "x", "shape": [3], "datatype": "INT64", "data": rows}
    answer = server.client.post("/v2/models/table/infer", json={"inputs": [item]}).json()
    np.testing.assert_allclose(np.reshape(answer["outputs"][0]["data"], (3, 64)), table[rows], rtol=1e-6)
    server.assert_unharmed()


def test_operators_that_are_not_there(server):
    for domain, operator in (("", "FormatDisk"), ("evil.ops", "Run"), ("com.microsoft", "NoSuch")):
        made = hostile.model(
            [helper.make_node(operator, ["x"], ["y"], domain=domain)],
            [("x", FLOAT, ["n", 4])],
            [("y", FLOAT, ["n", 4])],
        )
        made.opset_import.append(helper.make_opsetid("evil.ops", 1))
        server.put("custom", made.SerializeToString())
        server.assert_refused("custom", r"not a registered function/op|No Op registered|No opset import")


def filled(sizes):
    """A model that makes a tensor of these sizes, whatever comes in."""
    return hostile.model(
        [helper.make_node("ConstantOfShape", ["sizes"], ["c"]), helper.make_node("Add", ["x", "c"], ["y"])],
        [("x", FLOAT, ["n", 1])],
        [("y", FLOAT, ["n", None])],
        [numpy_helper.from_array(np.array(sizes, np.int64), "sizes")],
    )


def claiming(dims):
    """A model whose weights claim to be larger than they are."""
    tensor = TensorProto(name="W", data_type=FLOAT, dims=dims, raw_data=bytes(48))
    return hostile.model(
        [helper.make_node("MatMul", ["x", "W"], ["y"])],
        [("x", FLOAT, ["n", 4])],
        [("y", FLOAT, None)],
        [tensor],
    )


def wide(width):
    """A model that wants rows of this width: only to try it takes that much memory."""
    return hostile.model([helper.make_node("Relu", ["x"], ["y"])], [("x", FLOAT, ["n", width])], [("y", FLOAT, None)])


def test_absurd_dimensions(server):
    before = server.memory()
    for made, match in (
        (filled([1, 10**11]), "exceeded the available memory"),
        (filled([1, 10**14]), "exceeded the available memory"),
        (claiming([4, 10**12]), "exceeds the 2147483648 byte limit"),
        (claiming([2**33, 2**31]), "Incompatible dimensions"),
        (claiming([-1, 2]), "Out of bounds dimensions"),
        (wide(2 * 10**10), "exceeded the available memory"),
        (wide(2**62), r"cannot make random inputs of the shapes 'x' \(n, 4611686018427387904\)"),
    ):
        server.put("absurd", made.SerializeToString())
        began = time.monotonic()
        server.assert_refused("absurd", match)
        assert time.monotonic() - began < 60
    # What only fails when it is run, and takes no memory for that, is loaded, and fails when it is run.
    server.put("absurd", filled([2**62, 4]).SerializeToString())
    assert server.load("absurd").status_code == 200
    assert server.ask("absurd", np.zeros((1, 1))).status_code == 500
    server.client.post("/v2/repository/models/absurd/unload")
    server.assert_unharmed()
    assert server.memory() - before < 100 * 2**20


def looping():
    """A model that never ends."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["c"], ["c_out"]), helper.make_node("Identity", ["v"], ["v_out"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("c", TensorProto.BOOL, []),
            helper.make_tensor_value_info("v", FLOAT, ["n", 4]),
        ],
        [
            helper.make_tensor_value_info("c_out", TensorProto.BOOL, []),
            helper.make_tensor_value_info("v_out", FLOAT, ["n", 4]),
        ],
    )
    yes = helper.make_tensor("yes", TensorProto.BOOL, [], [True])
    loop = helper.make_node("Loop", ["", "yes", "x"], ["y"], body=body)
    return hostile.model([loop], [("x", FLOAT, ["n", 4])], [("y", FLOAT, ["n", 4])], [yes])


def test_a_model_that_never_ends(server):
    server.put("endless", looping().SerializeToString())
    answers = []
    thread = threading.Thread(target=lambda: answers.append(server.load("endless")))
    thread.start()
    while thread.is_alive():  # others are served meanwhile
        server.assert_unharmed()
        thread.join(0.2)
    assert answers[0].status_code == 500
    assert "a trial took longer than trial_load_s (5)" in answers[0].json()["error"]


def recurrent(shape):
    rng = np.random.default_rng(0)
    return hostile.model(
        [helper.make_node("LSTM", ["x", "W", "R"], ["y"], hidden_size=3)],
        [("x", FLOAT, shape)],
        [("y", FLOAT, None)],
        [
            numpy_helper.from_array(rng.standard_normal((1, 12, 4)).astype(np.float32), "W"),
            numpy_helper.from_array(rng.standard_normal((1, 12, 3)).astype(np.float32), "R"),
        ],
    )


def test_a_model_that_ends_the_process(server):
    """onnxruntime 1.32 aborts where several threads share the work of an LSTM over an empty batch."""
    server.put("abort", recurrent(["s", 0, 4]).SerializeToString())
    server.assert_refused("abort", r"a trial crashed \(SIGABRT\)|can't run without values")


def test_an_empty_request_to_a_recurrent_model(server):
    """The same from a client."""
    server.put("recurrent", recurrent(["s", "n", 4]).SerializeToString())
    assert server.load("recurrent").status_code == 200
    for shape, data, status in (([2, 0, 4], [], 400), ([2, 1, 4], [0.5] * 8, 200)):
        item = {"name": "x", "shape": shape, "datatype": "FP32", "data": data}
        answer = server.client.post("/v2/models/recurrent/infer", json={"inputs": [item]})
        assert answer.status_code == status, answer.text
        server.assert_unharmed()
    server.client.post("/v2/repository/models/recurrent/unload")


def test_a_file_that_is_replaced_while_it_is_loaded(server):
    """In place, by turns good and damaged: what is loaded is one of the whole ones, or nothing."""
    weights = hostile.matrix(seed=7)
    good = hostile.product(weights).SerializeToString()
    stop = threading.Event()

    def replace():
        rng = random.Random(1)
        while not stop.is_set():
            server.put("restless", good if rng.random() < 0.5 else good[: rng.randrange(len(good))])
            time.sleep(rng.random() * 0.05)

    server.put("restless", good)
    thread = threading.Thread(target=replace)
    thread.start()
    rows = np.eye(4, dtype=np.float32)
    try:
        print(f"\nfuzz: loads_of_a_file_being_replaced={max(8, FILES // 4)}")
        for _ in range(max(8, FILES // 4)):
            answer = server.load("restless")
            assert answer.status_code in (200, 404, 500), answer.text
            found = server.ask("restless", rows)
            if found.status_code == 200:
                np.testing.assert_allclose(found.json()["outputs"]["y"], weights, rtol=1e-4, atol=1e-5)
            server.assert_unharmed()
    finally:
        stop.set()
        thread.join()
    server.put("restless", good)
    assert server.load("restless").status_code == 200
    np.testing.assert_allclose(server.ask("restless", rows).json()["outputs"]["y"], weights, rtol=1e-4, atol=1e-5)


def lies(card):
    """Cards that say what is not so, or what no JSON reader could be told; the place, and what stands there."""
    return {
        "counts that contradict": card(("totals", "sketched_layers", "dense"), "1"),
        "a number beyond doubles": card(("check", "tolerance"), "1e999"),
        "sizes whose product is beyond counts": card(("layers", 0, "in_features"), str(2**53 - 1)),
        "infinity": card(("check", "max_relative_error"), "Infinity"),
        "not a number": card(("training",), '{"metrics": {"a": NaN}}'),
        "a count of 400 digits": card(("totals", "model", "dense"), "1" + "0" * 400),
        "a count of 5000 digits": card(("dense_twin", "weight_bytes"), "9" * 5000),
        "a version of 5000 digits": card(("schema_version",), '"' + "9" * 5000 + '.0"'),
        "half a character": card(("versions",), r'{"\ud800": "1"}'),
        "half a character in a label": card(("outputs", 0, "labels"), r'["\ud800", "b", "c"]'),
        "too many labels": card(("outputs", 0, "labels"), json.dumps(["a"] * 10_000)),
        "outputs that are not there": card(("outputs", 0, "name"), '"nowhere"'),
        "100000 lists": "[" * 100_000,
        "100000 objects": '{"a":' * 100_000,
        "numbers in quotes": card(("totals", "model", "fixed"), '"0"'),
        "no JSON": "\x00\x01",
        "markup": card(("name",), '"<script>alert(1)</script>"'),
    }  # fmt: skip


CONTRADICTING = ("counts that contradict", "sizes whose product is beyond counts")


def test_cards_that_lie(server):
    base = json.loads((hostile.ROOT / "tests" / "robustness" / "hostile" / "card.json").read_text())

    def card(place, value):
        changed = json.loads(json.dumps(base))
        at = changed
        for key in place[:-1]:
            at = at[key]
        at[place[-1]] = "@here@"
        return json.dumps(changed).replace('"@here@"', value)

    for what, text in {"the truth": json.dumps(base), **lies(card)}.items():
        server.put("liar", hostile.product(server.weights, text).SerializeToString())
        answer = server.load("liar")
        assert answer.status_code == 200, (what, answer.text)
        rows = np.eye(4, dtype=np.float32)
        answer = server.ask("liar", rows)
        np.testing.assert_allclose(answer.json()["outputs"]["y"], server.weights, rtol=1e-4, atol=1e-5)
        assert ("predictions" in answer.json()) == (what in {"the truth", *CONTRADICTING, "markup"}), what
        for path in (
            "/models",
            "/stats",
            "/models/liar",
            "/models/liar/stats",
            "/v2/models/liar",
            "/v2/models/liar/config",
        ):
            answer = server.client.get(path)
            assert answer.status_code == 200, (what, path, answer.text)
            strict = json.loads(answer.content, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
            assert strict
        stats = server.client.get("/models/liar/stats").json()["models"][0]
        believed = {"the truth", "markup", "too many labels", "outputs that are not there"}
        assert (stats["card_problem"] is None) == (what in believed), what
        assert server.client.get("/metrics").status_code == 200, what
        server.assert_unharmed()
