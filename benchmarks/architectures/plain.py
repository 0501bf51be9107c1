"""Architectures in plain torch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from architectures.family import CLASSES, VOCABULARY, Family, Inputs, Lengths, along, images, rows, steps

GROUP = "tabular and sequences"


class Recurrent(nn.Module):
    """A recurrent layer between linear ones, over any number of steps."""

    def __init__(self, kind: type[nn.RNNBase], *, both: bool = False) -> None:
        super().__init__()
        self.before = nn.Linear(24, 64)
        self.layer = kind(64, 48, batch_first=True, bidirectional=both)
        self.after = nn.Sequential(nn.Linear(96 if both else 48, 96), nn.ReLU(), nn.Linear(96, CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.layer(torch.relu(self.before(x)))[0].mean(1))


class PaddedEncoder(nn.Module):
    """nn.TransformerEncoder with a mask whose True hides, each place scored."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(64, 4, 128, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.head = nn.Linear(64, CLASSES)

    def forward(self, x: Tensor, pad: Tensor) -> Tensor:
        places = self.encoder(x, src_key_padding_mask=pad)
        return self.head(places.masked_fill(pad.unsqueeze(-1), 0.0).sum(1))


class Translator(nn.Module):
    """nn.Transformer, both sides."""

    def __init__(self) -> None:
        super().__init__()
        self.transformer = nn.Transformer(64, 4, 1, 1, 128, batch_first=True)
        self.head = nn.Linear(64, VOCABULARY)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        return self.head(self.transformer(source, target))


class Recommender(nn.Module):
    """DLRM: bags over tables and a bottom network meet in pairwise products."""

    def __init__(self) -> None:
        super().__init__()
        rows, width = (400, 900, 150, 1200, 600, 250), 32
        self.tables = nn.ModuleList(nn.EmbeddingBag(count, width, mode="sum") for count in rows)
        self.bottom = nn.Sequential(nn.Linear(13, 64), nn.ReLU(), nn.Linear(64, width), nn.ReLU())
        self.top = nn.Sequential(nn.Linear(width + 21, 64), nn.ReLU(), nn.Linear(64, 1))

    def forward(self, numbers: Tensor, categories: Tensor) -> Tensor:
        dense = self.bottom(numbers)
        bags = (table(categories[:, index]) for index, table in enumerate(self.tables))
        parts = torch.stack([dense, *bags], 1)
        pairs = parts @ parts.transpose(1, 2)
        above = torch.triu_indices(7, 7, 1)
        return self.top(torch.cat([dense, pairs[:, above[0], above[1]]], 1)).squeeze(1)


class Mixer(nn.Module):
    """MLP-Mixer: layers across the patches, and across the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 64, 4, 4)
        self.across = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))
        self.along = nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 64))
        self.norms = nn.ModuleList(nn.LayerNorm(64) for _ in range(2))
        self.head = nn.Linear(64, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        x = self.patches(image).flatten(2).transpose(1, 2)
        x = x + self.across(self.norms[0](x).transpose(1, 2)).transpose(1, 2)
        return self.head((x + self.along(self.norms[1](x))).mean(1))


class Table(nn.Module):
    """TabTransformer: attention over the columns of categories, beside the numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(40, 64)
        self.attention = nn.TransformerEncoderLayer(64, 4, 128, batch_first=True)
        self.numbers = nn.LayerNorm(8)
        self.head = nn.Sequential(nn.Linear(4 * 64 + 8, 64), nn.ReLU(), nn.Linear(64, CLASSES))

    def forward(self, categories: Tensor, numbers: Tensor) -> Tensor:
        columns = self.attention(self.embedding(categories)).flatten(1)
        return self.head(torch.cat([columns, self.numbers(numbers)], 1))


class TiedAutoencoder(nn.Module):
    """The decoder uses the encoder's weight."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.bias = nn.Linear(96, 48), nn.Parameter(torch.zeros(96))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(torch.relu(self.encoder(x)), self.encoder.weight.t(), self.bias)


class Tied(nn.Module):
    """Three layers with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(64, 64) for _ in range(3))
        for layer in self.layers[1:]:
            layer.weight = self.layers[0].weight

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = F.gelu(layer(x))
        return x


class Towers(nn.Module):
    """Two towers and their products."""

    def __init__(self) -> None:
        super().__init__()
        self.user = nn.Sequential(nn.Linear(40, 64), nn.ReLU(), nn.Linear(64, 32))
        self.item = nn.Sequential(nn.Linear(56, 64), nn.ReLU(), nn.Linear(64, 32))

    def forward(self, user: Tensor, item: Tensor) -> dict[str, Tensor]:
        user, item = F.normalize(self.user(user), dim=-1), F.normalize(self.item(item), dim=-1)
        return {"score": (user * item).sum(-1), "user_vector": user, "item_vector": item}


class Graph(nn.Module):
    """Graph convolution over a dense adjacency matrix; nodes vary."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(24, 64), nn.Linear(64, 64)])
        self.head = nn.Linear(64, CLASSES)

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.relu(adjacency @ layer(x))
        return self.head(x.mean(1))


def convolutions() -> nn.Module:
    """A convolutional network with a head of linear layers."""
    body = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()]
    return nn.Sequential(*body, nn.Linear(8 * 7 * 7, 64), nn.ReLU(), nn.Linear(64, CLASSES)).eval()


def temporal() -> nn.Module:
    """Dilated convolutions over time."""
    layers = [nn.Conv1d(24, 32, 3, padding=1), nn.ReLU(), nn.Conv1d(32, 32, 3, padding=2, dilation=2), nn.ReLU()]
    return nn.Sequential(
        *layers, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(32, 128), nn.ReLU(), nn.Linear(128, CLASSES)
    ).eval()


def padded(batch: int, length: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Rows of different length, and a mask whose True hides; the first row is whole."""
    lengths = torch.randint(length // 2, length + 1, (batch, 1), generator=generator)
    lengths[0] = length
    return {**steps(64)(batch, length, generator), "pad": torch.arange(length) >= lengths}


def mlp() -> nn.Module:
    """Three linear layers."""
    return nn.Sequential(nn.Linear(64, 96), nn.GELU(), nn.Linear(96, 96), nn.GELU(), nn.Linear(96, CLASSES)).eval()


def plain(
    name: str, group: str, make: Callable[[], nn.Module], inputs: Inputs, lengths: Lengths, **more: str
) -> Family:
    """A family that needs no library."""
    return Family(name, group, make, inputs, lengths, package=None, **more)


FAMILIES = (
    plain("MLP", GROUP, mlp, rows(input=64), {}),
    plain("Tied layers", GROUP, lambda: Tied().eval(), rows(x=64), {}),
    plain("Tied autoencoder", GROUP, lambda: TiedAutoencoder().eval(), rows(x=96), {}),
    plain("Two towers", GROUP, lambda: Towers().eval(), rows(user=40, item=56), {}),
    plain(
        "DLRM",
        GROUP,
        lambda: Recommender().eval(),
        lambda batch, _, generator: {
            "numbers": torch.randn(batch, 13, generator=generator),
            # six tables, four places of each row in its bag
            "categories": torch.randint(150, (batch, 6, 4), generator=generator),
        },
        {},
    ),
    plain(
        "TabTransformer",
        GROUP,
        lambda: Table().eval(),
        lambda batch, _, generator: {
            "categories": torch.randint(40, (batch, 4), generator=generator),
            "numbers": torch.randn(batch, 8, generator=generator),
        },
        {},
    ),
    plain("LSTM", GROUP, lambda: Recurrent(nn.LSTM).eval(), steps(24), along("x", called="time")),
    plain(
        "Bidirectional GRU", GROUP, lambda: Recurrent(nn.GRU, both=True).eval(), steps(24), along("x", called="time")
    ),
    plain("nn.TransformerEncoder, padded", GROUP, lambda: PaddedEncoder().eval(), padded, along("x", "pad")),
    plain(
        "nn.Transformer",
        GROUP,
        lambda: Translator().eval(),
        lambda batch, length, generator: {
            "source": torch.randn(batch, length, 64, generator=generator),
            "target": torch.randn(batch, length - 4, 64, generator=generator),
        },
        along("source") | along("target", called="target"),
    ),
    plain(
        "Graph convolution",
        GROUP,
        lambda: Graph().eval(),
        lambda batch, length, generator: {
            "x": torch.randn(batch, length, 24, generator=generator),
            "adjacency": torch.rand(batch, length, length, generator=generator).softmax(-1),
        },
        along("x", called="nodes") | {"adjacency": {1: "nodes", 2: "nodes"}},
    ),
    plain(
        "Temporal convolution",
        GROUP,
        temporal,
        lambda batch, length, generator: {"input": torch.randn(batch, 24, length, generator=generator)},
        along("input", axis=2, called="time"),
    ),
    plain("Convolutional network", "vision", convolutions, images(16, "input"), {}),
    plain("MLP-Mixer", "vision", lambda: Mixer().eval(), images(16, "image"), {}),
)
