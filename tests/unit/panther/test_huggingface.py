"""Converted models of transformers: saved and loaded by their own library."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from helpers.optional import Optional
from helpers.training import together
from torch import nn

import panther as pr
from panther.nn import SKLinear
from panther.nn.sketched_conv import SketchedConv

transformers = Optional("transformers")

SIZES = {
    "vocab_size": 100, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128,
    "max_position_embeddings": 32,
}  # fmt: skip
IDS = torch.randint(0, 100, (4, 12), generator=torch.Generator().manual_seed(0))


def bert(kind="BertForSequenceClassification", **options):
    torch.manual_seed(0)
    return getattr(transformers, kind)(transformers.BertConfig(**SIZES, **options)).eval()


def gpt2():
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=100, n_positions=32, n_embd=64, n_layer=2, n_head=4, use_cache=False)
    return transformers.GPT2LMHeadModel(config).eval()


def test_from_pretrained_gives_convolutions_back(tmp_path):
    torch.manual_seed(0)
    config = transformers.ResNetConfig(
        num_channels=3, embedding_size=16, hidden_sizes=[32, 64], depths=[1, 1], layer_type="basic", num_labels=5
    )
    model = transformers.ResNetForImageClassification(config).eval()
    images = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    report = pr.sketch_(model, ratio=0.7, calibration=[{"pixel_values": images}])
    assert any(layer.convolution and layer.converted for layer in report.layers)
    model.save_pretrained(tmp_path)
    loaded = transformers.ResNetForImageClassification.from_pretrained(tmp_path)
    assert torch.equal(loaded(pixel_values=images).logits, model(pixel_values=images).logits)
    assert {name for name, module in loaded.named_modules() if isinstance(module, SketchedConv)} == set(report.replaced)


def convert(model, ratio=0.7):
    report = pr.sketch_(model, ratio=ratio, calibration=[{"input_ids": IDS}])
    assert report.replaced
    return report


@pytest.mark.parametrize(
    "make", [bert, lambda: bert("BertForMaskedLM"), gpt2], ids=["classifier", "tied language model", "Conv1D"]
)
def test_from_pretrained_gives_the_converted_model_back(make, tmp_path):
    model = make()
    report = convert(model)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert torch.equal(loaded(input_ids=IDS).logits, model(input_ids=IDS).logits)
    sketched = {name for name, module in loaded.named_modules() if isinstance(module, SKLinear)}
    assert sketched == set(report.replaced)
    assert all(loaded.get_submodule(name)._packed is not None for name in sketched)
    assert plain(loaded).keys() == plain(model).keys()
    loaded.save_pretrained(tmp_path / "again")
    again = type(model).from_pretrained(tmp_path / "again")
    assert torch.equal(again(input_ids=IDS).logits, model(input_ids=IDS).logits)
    assert bool(loaded.half().dtype == torch.float16), "casts, which quantized models refuse, are right here"


def plain(model):
    return model.state_dict()


def test_a_new_process_loads_it_where_panther_is_imported(tmp_path):
    model = bert()
    convert(model)
    model.save_pretrained(tmp_path)
    torch.save(model(input_ids=IDS).logits, tmp_path / "logits.pt")
    code = """
        import torch

        def main(folder, *names):
            for name in names:
                __import__(name)
            from transformers import AutoModelForSequenceClassification
            logits = torch.load(folder + "/logits.pt")
            model = AutoModelForSequenceClassification.from_pretrained(folder)
            ids = torch.randint(0, 100, (4, 12), generator=torch.Generator().manual_seed(0))
            assert torch.equal(model(input_ids=ids).logits, logits)
    """
    orders = (["panther", "transformers"], ["transformers", "transformers.modeling_utils", "panther"])
    assert together(code, *([str(tmp_path), *order] for order in orders), count=1) == [[0], [0]]


def test_importing_panther_imports_no_transformers():
    code = "import panther, sys; assert not {'transformers', 'torch'} & sys.modules.keys()"
    root = Path(pr.__file__).parents[1]
    subprocess.run([sys.executable, "-c", code], timeout=120, cwd=root, check=True)


def test_a_base_model_loads_from_the_file_of_a_model_with_a_head(tmp_path):
    model = bert()
    report = convert(model)
    model.save_pretrained(tmp_path)
    base = transformers.BertModel.from_pretrained(tmp_path)
    assert torch.equal(base(IDS).last_hidden_state, model.bert(IDS).last_hidden_state)
    inner = {name.removeprefix("bert.") for name in report.replaced if name.startswith("bert.")}
    assert {name for name, module in base.named_modules() if isinstance(module, SKLinear)} == inner


def test_tied_layers_are_tied_again(tmp_path):
    model = bert()
    first, second = (layer.intermediate.dense for layer in model.bert.encoder.layer)
    second.weight = first.weight
    pr.sketch_(model, ratio=0.78, filter_fn=lambda _, name: "intermediate" in name)
    first, second = (layer.intermediate.dense for layer in model.bert.encoder.layer)
    assert first.S1s is second.S1s
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    first, second = (layer.intermediate.dense for layer in loaded.bert.encoder.layer)
    assert first.S1s is second.S1s
    assert first.U2s is second.U2s
    assert torch.equal(loaded(input_ids=IDS).logits, model(input_ids=IDS).logits)


def test_a_dense_model_of_the_same_config_stays_dense(tmp_path):
    config = transformers.BertConfig(**SIZES)
    model, dense = (transformers.BertModel(config).eval() for _ in range(2))
    convert(model)
    dense.save_pretrained(tmp_path)
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())
    loaded = transformers.BertModel.from_pretrained(tmp_path)
    assert torch.equal(loaded(IDS).last_hidden_state, dense(IDS).last_hidden_state)
    assert model.config is model.encoder.layer[0].attention.self.config


def test_a_part_of_a_larger_model_can_be_saved(tmp_path):
    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder, self.head = bert("BertModel"), nn.Linear(64, 64)

        def forward(self, input_ids):
            return self.head(self.encoder(input_ids).last_hidden_state)

    model = Wrapped().eval()
    convert(model)
    model.encoder.save_pretrained(tmp_path)
    loaded = transformers.BertModel.from_pretrained(tmp_path)
    assert torch.equal(loaded(IDS).last_hidden_state, model.encoder(IDS).last_hidden_state)


@pytest.mark.parametrize("kind", ["BertForSequenceClassification", "BertForMaskedLM"])
def test_restore_takes_the_file_of_save_pretrained(kind, tmp_path):
    model = bert(kind)
    report = convert(model)
    model.save_pretrained(tmp_path)
    fresh = bert(kind)
    with pytest.raises(pr.CheckpointError, match=r"is sketched in the file .*: panther.restore_\(model, path\)"):
        pr.load(fresh, tmp_path / "model.safetensors")
    assert set(pr.restore_(fresh, tmp_path / "model.safetensors")) == set(report.replaced)
    assert torch.equal(fresh(input_ids=IDS).logits, model(input_ids=IDS).logits)
    fresh.save_pretrained(tmp_path / "restored")
    loaded = type(fresh).from_pretrained(tmp_path / "restored")
    assert torch.equal(loaded(input_ids=IDS).logits, model(input_ids=IDS).logits)


def test_another_type_is_loaded_as_asked(tmp_path):
    model = bert()
    convert(model)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path, dtype=torch.bfloat16)
    layer = next(module for module in loaded.modules() if isinstance(module, SKLinear))
    assert {tensor.dtype for tensor in layer.state_dict().values()} == {torch.bfloat16}
    torch.testing.assert_close(loaded(input_ids=IDS).logits.float(), model(input_ids=IDS).logits, atol=0.05, rtol=0.05)


def t5():
    torch.manual_seed(0)
    sizes = {"d_model": 48, "d_kv": 24, "d_ff": 64, "num_layers": 1, "num_heads": 2, "decoder_start_token_id": 0}
    return transformers.T5ForConditionalGeneration(transformers.T5Config(vocab_size=100, **sizes)).eval()


@pytest.mark.parametrize("make", [gpt2, lambda: bert("BertForMaskedLM"), t5], ids=["GPT-2", "BERT", "T5"])
def test_from_pretrained_gives_tied_heads_back_and_the_file_has_their_factors_once(make, tmp_path):
    model = make()
    inputs = {"input_ids": IDS} | ({"decoder_input_ids": IDS} if make is t5 else {})
    pr.sketch_(model, ratio=0.5, calibration=[inputs], embeddings=True, filter_fn=lambda m, _: len(m.weight) == 100)
    head = model.get_output_embeddings()
    assert isinstance(head, pr.nn.LowRankHead)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)
    assert loaded.get_output_embeddings().A is loaded.get_input_embeddings().A
    stored = safetensors.torch.load_file(tmp_path / "model.safetensors")
    assert sum(tuple(tensor.shape) == tuple(head.A.shape) for tensor in stored.values()) == 1
    loaded.tie_weights()
    assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)
