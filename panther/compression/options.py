"""Options of a layer, each with bytes, multiply-adds and predicted effect on the model's outputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import nn

from panther.convert.layers import Place

FLOAT, INT8, LOW_RANK, LOW_RANK_INT8 = "float", "int8", "low_rank", "low_rank_int8"
INT4, INT4_CORRECTED, INT8_BLOCKS = "int4", "int4_corrected", "int8_blocks"
LOW_RANK_INT4 = "low_rank_int4"
IN_BLOCKS = (INT4, INT4_CORRECTED, INT8_BLOCKS)
# a layer may always stay unchanged
KINDS = (INT8, LOW_RANK, LOW_RANK_INT8, LOW_RANK_INT4, *IN_BLOCKS)

Replacements = Sequence[tuple[Place, nn.Module]]


@dataclass(frozen=True)
class Product:
    """A product by a constant matrix, as it runs in an exported file.

    Attributes:
        kind: `FLOAT`, `INT8`, `INT4` or `INT8_BLOCKS`.
        in_features, out_features: of the matrix.
        smoothed: whether the input is multiplied by a factor a channel first.
        block_size: of a weight in blocks; 0 for others.
        rounded: whether a product with a weight in blocks rounds its input to 8 bits.
    """

    kind: str
    in_features: int
    out_features: int
    smoothed: bool = False
    block_size: int = 0
    rounded: bool = True


@dataclass(frozen=True)
class ConvStep:
    """One convolution by a constant weight.

    Attributes:
        weight: its shape, (C_out, C_in/groups, *kernel).
        stride, dilation: one number an axis.
        pads: before every axis, then after every axis.
        groups: of the channels.
    """

    weight: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    pads: tuple[int, ...]
    groups: int = 1


@dataclass(frozen=True)
class Convolved:
    """Convolutions in sequence, as they run in an exported file.

    Attributes:
        steps: the first takes the input of the layer.
    """

    steps: tuple[ConvStep, ...]


@dataclass(frozen=True)
class Option:
    """One option for a layer.

    Attributes:
        kind: `FLOAT` for unchanged, or one of `KINDS`.
        bytes: of the weight, its scales and the biases.
        multiply_adds: of a forward pass, for a row, or for a position of a convolution's output.
        error: the predicted relative squared error of the model's outputs.
        make: the modules, with the places that they go to; none for `FLOAT`.
        rank: rank of the factors; None without factors.
        products: what an exported file computes.
        detail: further parameters of its kind.
    """

    kind: str
    bytes: int
    multiply_adds: int
    error: float
    make: Callable[[], Replacements]
    rank: int | None = None
    products: tuple[Product | Convolved, ...] = ()
    detail: str = ""

    @property
    def label(self) -> str:
        """The kind and its parameters."""
        if self.detail:
            return f"{self.kind} ({self.detail})"
        return self.kind if self.rank is None else f"{self.kind} of rank {self.rank}"


@dataclass(frozen=True)
class Part:
    """A linear layer, a convolution or an embedding of the model.

    Attributes:
        name: dotted.
        names: of every module that holds the weight.
        layer: "linear", "convolution" or "embedding".
        shape: of its weight; of a convolution (output channels, entries of a patch).
        options: at least one; the first is `FLOAT`.
        reason: why it has no other option; None if it has.
    """

    name: str
    names: tuple[str, ...]
    layer: str
    shape: tuple[int, int]
    options: tuple[Option, ...]
    reason: str | None = None

    @property
    def predicted(self) -> bool:
        """Whether the errors of options are predicted from the layer alone; those of embeddings are measured."""
        return self.layer != "embedding"

    def only(self, kinds: Sequence[str]) -> tuple[int, ...]:
        """Indices of the options of some kinds; that of `FLOAT` is always among them."""
        return tuple(i for i, option in enumerate(self.options) if option.kind == FLOAT or option.kind in kinds)


def unchanged() -> Replacements:
    """The modules of `FLOAT`."""
    return ()
