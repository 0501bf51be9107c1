"""The report's output_error is what a caller measures on the calibration rows: architecture by architecture."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import panther as pr

pytestmark = pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")


def ids(batches=3, rows=6, length=10, vocabulary=90):
    generator = torch.Generator().manual_seed(1)
    return [{"input_ids": torch.randint(0, vocabulary, (rows, length), generator=generator)} for _ in range(batches)]


def rows(*shape, batches=3):
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(*shape, generator=generator) for _ in range(batches)]


class Mixer(nn.Module):
    """Linear layers over tokens and over channels."""

    def __init__(self):
        super().__init__()
        self.tokens = nn.Sequential(nn.Linear(48, 96), nn.GELU(), nn.Linear(96, 48))
        self.channels = nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 64))
        self.norms = nn.ModuleList(nn.LayerNorm(64) for _ in range(2))

    def forward(self, x):
        x = x + self.tokens(self.norms[0](x).mT).mT
        return x + self.channels(self.norms[1](x))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.into, self.rnn, self.out = nn.Linear(64, 96), nn.GRU(96, 96, batch_first=True), nn.Linear(96, 64)

    def forward(self, x):
        return self.out(self.rnn(self.into(x))[0])


class Convolutional(nn.Sequential):
    def __init__(self):
        features = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(4))
        super().__init__(features, nn.Flatten(), nn.Linear(128, 96), nn.ReLU(), nn.Dropout(0.5), nn.Linear(96, 64))


class Gated(nn.Module):
    """Two outputs, one a mapping's; dropout; a residual."""

    def __init__(self):
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(64, 128), nn.Linear(64, 128), nn.Linear(128, 64)
        self.drop = nn.Dropout(0.3)

    def forward(self, x, scale=1.0):
        hidden = self.drop(torch.nn.functional.silu(self.gate(x)) * self.up(x))
        return {"out": x + scale * self.down(hidden), "hidden": hidden}


class EncoderDecoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Transformer(64, 4, 1, 1, 128, batch_first=True)

    def forward(self, src, tgt, hidden):
        return self.net(src, tgt, src_key_padding_mask=hidden)


def transformer(name, **options):
    transformers = pytest.importorskip("transformers")
    base = {
        "vocab_size": 90, "hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 128,
        "max_position_embeddings": 40,
    }  # fmt: skip
    config = getattr(transformers, f"{name}Config")(**(base | options))
    return getattr(transformers, f"{name}Model")(config)


def vit():
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 128}
    return transformers.ViTModel(transformers.ViTConfig(**sizes, image_size=16, patch_size=4))


def padded(batches=3):
    found = []
    for batch in ids(batches):
        lengths = torch.tensor([[10], [4], [7], [10], [2], [9]])
        found.append(batch | {"attention_mask": (torch.arange(10) < lengths).long()})
    return found


def seq2seq():
    hidden = torch.arange(12) >= torch.tensor([[12], [5], [7], [3]])
    return [(src, tgt, hidden) for src, tgt in zip(rows(4, 12, 64), rows(4, 7, 64), strict=True)]


ARCHITECTURES = {
    "perceptron": (lambda: nn.Sequential(nn.Linear(96, 128), nn.ReLU(), nn.Linear(128, 64)), lambda: rows(40, 96)),
    "mixer": (Mixer, lambda: rows(5, 48, 64)),
    "recurrent": (Recurrent, lambda: rows(5, 9, 64)),
    "convolutional": (Convolutional, lambda: rows(12, 3, 20, 20)),
    "gated": (Gated, lambda: rows(30, 64)),
    "transformer": (EncoderDecoder, seq2seq),
    "encoder": (
        lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(64, 4, 128, batch_first=True), 2),
        lambda: rows(5, 9, 64),
    ),
    "bert": (lambda: transformer("Bert"), ids),
    "bert, padded": (lambda: transformer("Bert"), padded),
    "distilbert": (
        lambda: transformer("DistilBert", dim=64, n_layers=1, n_heads=4, hidden_dim=128), padded,
    ),
    "roberta": (lambda: transformer("Roberta", pad_token_id=0), ids),
    "llama": (lambda: transformer("Llama", use_cache=False), padded),
    "gpt2": (lambda: transformer("GPT2", n_embd=64, n_layer=1, n_head=4, use_cache=False), ids),
    "mixtral": (
        lambda: transformer("Mixtral", num_key_value_heads=2, num_local_experts=2, use_cache=False), ids,
    ),
    "vit": (vit, lambda: [{"pixel_values": x} for x in rows(4, 3, 16, 16)]),
}  # fmt: skip


def outputs(model, batch):
    """The outputs that count, by name or place, each as rows."""
    result = model(**batch) if isinstance(batch, dict) else model(*batch) if isinstance(batch, tuple) else model(batch)
    named = dict(result.items()) if hasattr(result, "items") else {"y": result}
    mask = batch.get("attention_mask") if isinstance(batch, dict) else None
    found = {}
    for name, y in named.items():
        if isinstance(y, torch.Tensor) and y.is_floating_point():
            hides = mask is not None and y.dim() > 2 and y.shape[:2] == mask.shape
            found[name] = (y[mask.bool()] if hides else y).double()
    return found


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_reported_is_measured(name):
    make, data = ARCHITECTURES[name]
    torch.manual_seed(0)
    model, batches = make(), data()
    model.train()
    original = copy.deepcopy(model)
    report = pr.sketch_(model, ratio=0.8, calibration=batches)
    assert report.replaced
    assert model.training
    lost: dict[str, list[float]] = {}
    with torch.no_grad():
        for batch in batches:
            found = outputs(model.eval(), batch)
            for key, y in outputs(original.eval(), batch).items():
                entry = lost.setdefault(key, [0.0, 0.0])
                entry[0] += (y - found[key]).square().sum().item()
                entry[1] += y.square().sum().item()
    measured = (sum(error / size for error, size in lost.values()) / len(lost)) ** 0.5
    assert 0 < measured < 1
    assert report.output_error == pytest.approx(measured, rel=1e-3, abs=1e-7)
    assert f"{len(batches)} calibration batches" in report.measured_on
