"""A family of architectures: the factory of a small model, and its inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

VOCABULARY = 96
WIDTH = 64
CLASSES = 6
LENGTH, OTHER_LENGTH = 9, 14

Inputs = Callable[[int, int, torch.Generator], dict[str, Tensor]]
Lengths = Mapping[str, Mapping[int, str]]


@dataclass(frozen=True)
class Family:
    """A small model of an architecture.

    Attributes:
        name: in the table, and of the model on the server.
        group: "text", "text generation", "vision", "audio", "tabular and sequences".
        make: the model, untrained, in evaluation mode.
        inputs: tensors by argument name, for a batch size and a length.
        lengths: by input the axes, besides the first, whose size varies, and their names.
        stays_dense: what `sketch_` says where nothing can be converted; None where something can.
        refused: what the export says, where the architecture can't be exported; None where it can.
        package: the library that it comes from, or None for plain torch.
        like: a family with nearly the same graph. The benchmark runs both, the tests only that one.
    """

    name: str
    group: str
    make: Callable[[], nn.Module]
    inputs: Inputs
    lengths: Lengths
    stays_dense: str | None = None
    refused: str | None = None
    package: str | None = "transformers"
    like: str | None = None

    def axes(self, inputs: Mapping[str, Tensor]) -> dict[str, dict[int, str]]:
        """The axes of variable size by input."""
        return {name: {0: "batch", **self.lengths.get(name, {})} for name in inputs}


def tokens(*names: str, mask: str | None = "attention_mask") -> Inputs:
    """Token ids by these names, and a mask of 1 where a row has tokens; the first row is whole."""

    def make(batch: int, length: int, generator: torch.Generator) -> dict[str, Tensor]:
        inputs = {name: torch.randint(3, VOCABULARY, (batch, length), generator=generator) for name in names}
        if mask is not None:
            lengths = torch.randint(length // 2, length + 1, (batch, 1), generator=generator)
            lengths[0] = length
            inputs[mask] = (torch.arange(length) < lengths).long()
        return inputs

    return make


def images(size: int, name: str = "pixel_values", channels: int = 3) -> Inputs:
    """Square images."""
    return lambda batch, _, generator: {name: torch.randn(batch, channels, size, size, generator=generator)}


def rows(**widths: int) -> Inputs:
    """Rows of numbers, one input for each name."""
    return lambda batch, _, generator: {
        name: torch.randn(batch, width, generator=generator) for name, width in widths.items()
    }


def steps(width: int, name: str = "x") -> Inputs:
    """Sequences of rows."""
    return lambda batch, length, generator: {name: torch.randn(batch, length, width, generator=generator)}


def along(*names: str, axis: int = 1, called: str = "sequence") -> dict[str, dict[int, str]]:
    """The variable axis of some inputs."""
    return {name: {axis: called} for name in names}
