"""Quantization-aware training: trainable layers in place of the quantized ones during a distillation."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn

from panther.convert.layers import Place
from panther.convert.swap import Swap
from panther.linalg.levels import integer_levels
from panther.linalg.sign_bits import sign_magnitude
from panther.nn import SKLinear
from panther.nn.hooks import take_hooks
from panther.nn.low_rank import Int8LowRank
from panther.nn.quantized import BlockLinear, CorrectedLinear, FactoredLinear, Int8Linear, StoredConv
from panther.nn.quantized.trainable import Trainable, TrainableBlocks, TrainableInt8, trainable

QUANTIZED_LAYERS = (
    TrainableBlocks,
    TrainableInt8,
    BlockLinear,
    Int8Linear,
    FactoredLinear,
    CorrectedLinear,
    Int8LowRank,
    StoredConv,
)
"""Quantized linear layers and convolutions, also those in training; composites beside their parts."""


@contextlib.contextmanager
def training(model: nn.Module) -> Iterator[None]:
    """Replace quantized layers by trainable ones; on exit put them back with the trained integers.

    After an error they are unchanged, except for their biases.
    """
    pairs: dict[int, tuple[nn.Module, Trainable]] = {}
    places: dict[int, Place] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if id(module) not in pairs:
            found = trainable(module)
            if found is None or not name:
                continue
            take_hooks(found, module)
            pairs[id(module)] = (module, found.train(module.training))
        places.setdefault(id(module), Place(module, [])).names.append(name)
    with Swap(model, [(places[key], found) for key, (_, found) in pairs.items()]):
        yield
    for module, found in pairs.values():
        found.write_to(module)  # type: ignore[arg-type]


def is_training(model: nn.Module) -> bool:
    """Whether a model has quantized layers in training."""
    return any(isinstance(module, Trainable) for module in model.modules())


@torch.no_grad()
def is_stored(layer: SKLinear) -> bool:
    """Whether a layer has learned terms in 8 or 4 bits beside fixed signs, as `panther.quantize_` makes them."""
    signs = any(sign_magnitude(U) is not None for U in (layer.U1s, layer.U2s))
    terms = (layer.S1s.transpose(0, 1).flatten(1), layer.S2s.flatten(0, 1))
    return signs and all(bool(S.any()) and integer_levels(S.detach().cpu()) is not None for S in terms)
