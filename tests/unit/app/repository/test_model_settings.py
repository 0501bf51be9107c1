"""``NAME/panther.toml``: one model's own settings."""

import os
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from helpers import build
from helpers.operator_libraries import operator_library
from onnx import TensorProto, helper, numpy_helper

from app.config.settings import Settings
from app.errors import LoadError
from app.repository.model_settings import ModelSettings, read_model_settings
from app.repository.served_model import Loader

ROW = [0.5, -1.0, 2.0, 0.25, 0.0, 1.5]
CONFIG = "/v2/models/m/config"


def test_without_a_file_the_server_s_settings_hold(tmp_path):
    assert read_model_settings("m", tmp_path) == ModelSettings(
        batching="auto", max_batch_rows=None, batch_delay_us=0, version_policy=None
    )


@pytest.mark.parametrize(
    ("text", "word"), [("true", "auto"), ("false", "off"), ('"auto"', "auto"), ('"on"', "on"), ('"off"', "off")]
)
def test_batching_is_a_word_or_true_or_false(tmp_path, text, word):
    (tmp_path / "panther.toml").write_text(f"batching = {text}")
    assert read_model_settings("m", tmp_path).batching == word


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max_batch_rows = 0", r"max_batch_rows: 0 is not valid: input should be greater than or equal to 1"),
        ('max_batch_rows = "8"', r"max_batch_rows: '8' is not valid: input should be a valid integer"),
        ("batch_delay_us = -1", r"batch_delay_us: -1 is not valid: input should be greater than or equal to 0"),
        (
            'version_policy = "newest"',
            r"version_policy: 'newest' is not valid: must be latest, all, or version numbers",
        ),
        ("max_rows = 3", r"max_rows is not a setting of a model; known settings: batching, max_batch_rows, "),
        ("batching", r" is not TOML: "),
        ('batching = "yes"', r"batching: 'yes' is not valid: input should be 'auto', 'on' or 'off'"),
        ("session.threads = 0", r"session.threads: 0 is not valid: input should be greater than or equal to 1"),
        ("session.thread = 1", r"session.thread is not a setting of a model; known settings: threads, graph_opt"),
        ('session.graph_optimization = "most"', r"session.graph_optimization: 'most' is not valid: input should be"),
        ("session = 3", r"session: 3 is not valid: input should be a valid dictionary"),
        ('custom_ops = "a.so"', r"custom_ops: 'a.so' is not valid: input should be a valid list"),
        ("max_batch_rows = " + 5000 * "9", r" is not TOML: .*4300 digits"),
        ("max_batch_rows = " + 5000 * "[", r" is not TOML: .*nested too deep"),
    ],
)
def test_what_is_wrong_is_said(tmp_path, text, message):
    (tmp_path / "panther.toml").write_text(text)
    with pytest.raises(LoadError, match=rf"^model 'm': panther.toml.*{message}"):
        read_model_settings("m", tmp_path)


def test_a_byte_order_mark_is_no_part_of_it(tmp_path):
    (tmp_path / "panther.toml").write_bytes("max_batch_rows = 3\r\n".encode("utf-8-sig"))
    assert read_model_settings("m", tmp_path).max_batch_rows == 3


def test_a_file_that_cannot_be_parsed_keeps_no_other_model_from_being_served(tmp_path):
    build.put(tmp_path, build.Tiny().graph(), "other")
    with serve(tmp_path, "max_batch_rows = " + 5000 * "[") as client:
        assert client.post("/models/other/predict", json={"inputs": [ROW]}).status_code == 200
        assert "m: model 'm': panther.toml is not TOML: " in client.get("/health/ready").json()["error"]


def burst(client, count, rows=1):
    """So many requests at once; the largest run that came of them."""
    barrier = threading.Barrier(count)

    def ask():
        barrier.wait()
        assert client.post("/models/m/predict", json={"inputs": [ROW] * rows}).status_code == 200

    threads = [threading.Thread(target=ask) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    stats = client.get("/v2/models/m/stats").json()["model_stats"][0]
    return max(batch["batch_size"] for batch in stats["batch_stats"])


def serve(tmp_path, text, **settings):
    build.put(tmp_path, build.Tiny().graph(), "m")
    (tmp_path / "m" / "panther.toml").write_text(text)
    return build.running(tmp_path, **settings)


def test_a_model_s_own_maximum_is_kept(tmp_path):
    with serve(tmp_path, "max_batch_rows = 3\nbatch_delay_us = 20000") as client:
        assert client.get(CONFIG).json()["max_batch_size"] == 3
        assert client.get(CONFIG).json()["dynamic_batching"]["max_queue_delay_microseconds"] == 20000
        assert burst(client, 8) <= 3
        # A request with more rows is run in pieces.
        x = np.linspace(-1, 1, 60).reshape(10, 6)
        answer = client.post("/models/m/predict", json={"inputs": x.tolist()}).json()["outputs"]["logits"]
        np.testing.assert_allclose(answer, build.Tiny().logits(x), rtol=1e-4, atol=1e-5)


def test_a_delay_gathers_what_comes_apart(tmp_path):
    with serve(tmp_path, "batch_delay_us = 200000") as client:
        assert burst(client, 6) == 6


def test_batching_can_be_off(tmp_path):
    with serve(tmp_path, "batching = false", inline_run_us=0) as client:
        assert burst(client, 8, rows=2) == 2
        assert "dynamic_batching" not in client.get(CONFIG).json()


def test_a_model_chooses_its_versions(tmp_path):
    for version in ("2", "3"):
        build.put(tmp_path, build.Tiny().graph(), "m", version)
    with serve(tmp_path, 'version_policy = "1,2"') as client:
        assert client.get("/v2/models/m").json()["versions"] == ["1", "2"]
        assert client.get(CONFIG).json()["version_policy"] == {"specific": {"versions": [1, 2]}}


def test_a_wrong_file_leaves_what_is_served_and_tells_why(tmp_path):
    with serve(tmp_path, "max_batch_rows = 3", model_control="explicit") as client:
        (tmp_path / "m" / "panther.toml").write_text("max_batch_rows = 0")
        answer = client.post("/v2/repository/models/m/load")
        assert answer.status_code == 500
        assert answer.json()["error"].startswith("model 'm': panther.toml: max_batch_rows: 0 is not valid")
        assert client.post("/models/m/predict", json={"inputs": [ROW]}).status_code == 200
        (item,) = client.post("/v2/repository/index").json()
        assert (item["state"], item["reason"][:15]) == ("READY", "reload failed: ")
        assert client.get("/health/ready").status_code == 200


def test_a_wrong_file_at_the_start_is_told_by_the_probe(tmp_path):
    with serve(tmp_path, "batching = 1") as client:
        answer = client.get("/health/ready")
        assert answer.status_code == 503
        assert "m: model 'm': panther.toml: batching: 1 is not valid" in answer.json()["error"]
        assert str(tmp_path) not in answer.text


def load(tmp_path, text, **settings):
    path = build.put(tmp_path, build.Tiny().graph(), "m")
    (tmp_path / "m" / "panther.toml").write_text(text)
    own = read_model_settings("m", tmp_path / "m")
    return Loader(Settings(model_dir=tmp_path, device="cpu", num_threads=1, **settings))("m", "1", path, own)


def test_the_session_is_as_its_table_says(tmp_path):
    text = '[session]\nthreads = 3\ngraph_optimization = "basic"\nproviders = ["cpu"]'
    model = load(tmp_path, text).model
    options = model.session.ort.get_session_options()
    assert (model.num_threads, options.intra_op_num_threads) == (3, 3)
    assert options.graph_optimization_level == ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    assert model.providers == ["CPUExecutionProvider"]


def test_an_unknown_provider_is_refused_with_the_list_of_those_there_are(tmp_path):
    there = ", ".join(ort.get_available_providers())
    with pytest.raises(
        LoadError, match=rf"session.providers: 'TensorRT' is not installed; this onnxruntime has: {there}"
    ):
        load(tmp_path, '[session]\nproviders = ["TensorRT", "CPU"]')


def test_libraries_of_operators_are_refused_unless_the_server_allows_them(tmp_path):
    with pytest.raises(LoadError, match=r"m'.*custom_ops: this server does not allow .*PANTHER_ALLOW_CUSTOM_OPS=true"):
        load(tmp_path, 'custom_ops = ["1/libops.so"]')


@pytest.mark.parametrize(
    ("library", "match"),
    [
        ("../libops.so", "is not in the folder of the model"),
        ("/usr/lib/libops.so", "is not in the folder of the model"),
        ("1/link.so", "is not in the folder of the model"),
        ("1/fifo.so", "can't be read: it is a FIFO"),
        ("1/none.so", "can't be read: No such file"),
        ("1/text.so", r"text\.so can't be registered: "),
    ],
)
def test_a_library_has_to_be_a_file_of_the_model_s_own_folder(tmp_path, library, match):
    folder = tmp_path / "m" / "1"
    folder.mkdir(parents=True)
    (tmp_path / "libops.so").write_text("x")
    (folder / "link.so").symlink_to(tmp_path / "libops.so")
    (folder / "text.so").write_text("x")
    os.mkfifo(folder / "fifo.so")
    path = folder / "model.onnx"
    path.write_bytes(build.Tiny().graph().SerializeToString())
    own = ModelSettings(custom_ops=[library])
    loader = Loader(Settings(model_dir=tmp_path, device="cpu", allow_custom_ops=True))
    with pytest.raises(LoadError, match=match):
        loader("m", "1", path, own)


WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "sat", "do", "##g"]


def contrib(tmp_path, name, model) -> None:
    """A model with operators of onnxruntime-extensions, and their library beside it."""
    library = operator_library()
    folder = build.put(tmp_path, model, name).parent
    shutil.copy(library, folder)
    (tmp_path / name / "panther.toml").write_text(f'custom_ops = ["1/{Path(library).name}"]')


def contrib_model(node, inputs, outputs) -> onnx.ModelProto:
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.contrib", 1)]
    return helper.make_model(helper.make_graph([node], "g", inputs, outputs), opset_imports=opsets, ir_version=8)


def test_operators_of_onnxruntime_extensions_are_served(tmp_path):
    text = helper.make_tensor_value_info("text", TensorProto.STRING, ["n"])
    upper = helper.make_tensor_value_info("upper", TensorProto.STRING, ["n"])
    node = helper.make_node("StringUpper", ["text"], ["upper"], domain="ai.onnx.contrib")
    contrib(tmp_path, "m", contrib_model(node, [text], [upper]))
    with build.running(tmp_path, allow_custom_ops=True) as client:
        answer = client.post("/predict", json={"inputs": ["abc", "x"]})
        assert answer.json()["outputs"] == {"upper": ["ABC", "X"]}, answer.text
        session = client.get("/stats").json()["models"][0]["runtime"]["session"]
        assert [Path(library).parent.name for library in session["custom_ops"]] == ["1"]


def test_a_tokenizer_is_served_beside_the_model_of_its_tokens(tmp_path):
    names = ("ids", "types", "mask")
    node = helper.make_node(
        "BertTokenizer", ["text"], names, domain="ai.onnx.contrib", vocab_file="\n".join(WORDS), do_lower_case=1
    )
    text = helper.make_tensor_value_info("text", TensorProto.STRING, ["n"])
    outputs = [helper.make_tensor_value_info(name, TensorProto.INT64, None) for name in names]
    contrib(tmp_path, "tokenizer", contrib_model(node, [text], outputs))
    table = np.random.default_rng(0).standard_normal((len(WORDS), 3)).astype(np.float32)
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["words"]),
        helper.make_node("ReduceMean", ["words", "axis"], ["mean"], keepdims=0),
    ]
    mean = build.onnx_model(
        nodes,
        [("ids", TensorProto.INT64, ["n", "length"])],
        [("mean", TensorProto.FLOAT, ["n", 3])],
        [numpy_helper.from_array(table, "table"), numpy_helper.from_array(np.array([1], np.int64), "axis")],
    )
    build.put(tmp_path, mean, "mean")

    def embed(client, sentence):
        tokens = client.post("/models/tokenizer/predict", json={"inputs": [sentence]}).json()["outputs"]["ids"]
        answer = client.post("/models/mean/predict", json={"inputs": [tokens]}).json()
        return tokens, answer["outputs"]["mean"][0]

    sentences = {"The cat sat": [2, 5, 6, 7, 3], "the DOG": [2, 5, 8, 9, 3], "a cat": [2, 1, 6, 3]}
    with build.running(tmp_path, allow_custom_ops=True, default_model="mean") as client:
        batched = {item["name"]: item["runtime"]["batched"] for item in client.get("/stats").json()["models"]}
        assert batched == {"mean": True, "tokenizer": False}  # two texts in one run would be a pair of sentences
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda sentence: embed(client, sentence), 10 * list(sentences)))
    for (tokens, mean), expected in zip(found, 10 * list(sentences.values()), strict=True):
        assert tokens == expected
        np.testing.assert_allclose(mean, table[expected].mean(axis=0), rtol=1e-5)
