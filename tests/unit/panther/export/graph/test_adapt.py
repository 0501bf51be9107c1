"""Models of transformers as it makes them: with its own attention, experts and caches."""

import numpy as np
import pytest
import torch
from helpers.optional import Optional

transformers = Optional("transformers")

IDS = torch.randint(0, 90, (3, 7), generator=torch.Generator().manual_seed(0))
SMALL = {"vocab_size": 90, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
AXES = {"input_ids": {0: "batch", 1: "sequence"}}


def t5(**options):
    config = transformers.T5Config(d_model=32, d_ff=64, num_layers=1, num_heads=4, d_kv=8, **SMALL, **options)
    return transformers.T5EncoderModel(config).eval()


def mixtral(**options):
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    config = transformers.MixtralConfig(num_key_value_heads=2, num_local_experts=4, **sizes, **SMALL, **options)
    return transformers.MixtralForCausalLM(config).eval()


def gpt2(**options):
    config = transformers.GPT2Config(n_embd=32, n_layer=1, n_head=4, n_positions=32, **SMALL, **options)
    return transformers.GPT2LMHeadModel(config).eval()


@pytest.mark.parametrize(
    ("make", "options", "output"),
    [
        (t5, {}, "last_hidden_state"),
        (mixtral, {}, "logits"),
        (mixtral, {"experts_implementation": "eager"}, "logits"),
        (gpt2, {}, "logits"),
        (gpt2, {"use_cache": False}, "logits"),
    ],
    ids=["attention", "experts", "experts one by one", "cache", "no cache"],
)
def test_what_torch_cannot_trace_is_run_in_another_way(make, options, output, export, run):
    torch.manual_seed(0)
    model = make(**options)
    before = model.config.to_dict()
    report = export(model, {"input_ids": IDS}, dynamic_axes=AXES)
    assert model.config.to_dict() == before
    assert [entry.name for entry in report.card.outputs] == [output]
    ids = torch.randint(0, 90, (2, 11))
    with torch.no_grad():
        expected = model(input_ids=ids)[output].numpy()
    (found,) = run(report.path, input_ids=ids)
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()
    cache = "['past_key_values'] (DynamicCache) is not a tensor; the file has no output for it"
    assert report.card.notes == (None if options.get("use_cache") is False or make is t5 else (cache,))
