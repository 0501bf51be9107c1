"""The one place where both sides of the model file meet: what panther writes is what the server reads."""

import json

import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from app.errors import CardError
from app.runtime.card import METADATA_KEY, parse_card
from panther.export import CARD_KEY, Output, Training, export_onnx, read_card
from panther.nn import SKLinear


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    torch.manual_seed(0)
    model = nn.Sequential(SKLinear(64, 48, 1, 8), SKLinear(48, 32, 1, 4), nn.ReLU(), SKLinear(32, 24, 1, 4))
    report = export_onnx(
        model,
        torch.randn(4, 64),
        tmp_path_factory.mktemp("models"),
        name="m",
        outputs=[Output("y", "scores", "logits", tuple(map(str, range(24))))],
        training=Training(dataset="rows", metrics={"accuracy": 0.5}),
        plan="two_products",
        num_threads=1,
        batch_sizes=(1,),
    )
    # as the server gets it
    return onnxruntime.InferenceSession(str(report.path)).get_modelmeta().custom_metadata_map[METADATA_KEY]


def test_the_server_reads_every_field_as_it_was_written(text):
    written, card = json.loads(text), parse_card(text)
    assert CARD_KEY == METADATA_KEY
    read = card.model_dump(exclude_none=True)
    for key, value in read.items():
        if key == "layers":
            for ours, theirs in zip(value, written[key], strict=True):
                assert ours == {field: theirs[field] for field in ours}
        elif key in ("check", "training"):
            assert value.items() <= written[key].items()
        else:
            assert value == written[key]
    assert {"name", "inputs", "outputs", "layers", "totals", "dense_twin", "check", "training"} <= set(read)


def test_the_servers_formulas_agree_with_the_written_counts(text):
    assert parse_card(text).contradictions() == []
    card = json.loads(text)
    card["layers"][0]["parameters"]["learnable"] += 1
    assert parse_card(json.dumps(card)).contradictions()


def test_a_newer_minor_version_is_read_and_a_newer_major_one_refused(text):
    card = json.loads(text)
    newer = {**card, "schema_version": "1.7", "unheard": {"of": 1}}
    assert parse_card(json.dumps(newer)).name == "m"
    with pytest.raises(CardError, match=r"schema_version \(2\.0\)"):
        parse_card(json.dumps({**card, "schema_version": "2.0"}))


def test_a_file_without_a_card_has_none():
    assert read_card(onnx.ModelProto()) is None
