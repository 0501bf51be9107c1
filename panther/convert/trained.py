"""The parameters that a distillation trains."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import nn

from panther.convert import quantized
from panther.nn import SKLinear
from panther.nn.embedding import LowRankTable
from panther.nn.quantized.trainable import Trainable
from panther.nn.sketched_conv import SketchedConv

Train = Literal["all", "sketched"]


def trained_parameters(student: nn.Module, train: Train) -> list[nn.Parameter]:
    """The trained parameters, each once; none if no layer is sketched or quantized."""
    found: dict[int, nn.Parameter] = {}
    # embedding tables, and terms in bits beside signs
    stored: set[int] = set()
    for module in student.modules():
        if isinstance(module, SKLinear) and quantized.is_stored(module):
            stored |= {id(module.S1s), id(module.S2s)}
            found |= {} if module.bias is None else {id(module.bias): module.bias}
        elif isinstance(module, SKLinear | SketchedConv):
            for parameter in (module.S1s, module.S2s, module.bias):
                if parameter is not None:
                    found.setdefault(id(parameter), parameter)
        elif isinstance(module, LowRankTable | Trainable):
            found |= {id(parameter): parameter for parameter in module.parameters()}
    if not found or train == "sketched":
        return list(found.values())
    stored |= {id(m.weight) for m in student.modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag)}
    for parameter in student.parameters():
        if parameter.is_floating_point() and id(parameter) not in stored:
            found.setdefault(id(parameter), parameter)
    return list(found.values())


def can_train(student: nn.Module) -> bool:
    """Whether `distill_` finds a sketched or quantized layer in a model."""
    with quantized.training(student):
        return bool(trained_parameters(student, "sketched"))


@contextlib.contextmanager
def put_back(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Restore values of parameters on an error; at the end drop gradients, and restore requires_grad."""
    initial = [parameter.detach().clone() for parameter in parameters]
    trained = [parameter.requires_grad for parameter in parameters]
    try:
        yield
    except BaseException:
        with torch.no_grad():
            for parameter, value in zip(parameters, initial, strict=True):
                parameter.copy_(value)
        raise
    finally:
        for parameter, flag in zip(parameters, trained, strict=True):
            parameter.grad = None
            parameter.requires_grad_(flag)
