"""Padding of a convolution: widths before and after each spatial axis, and the padded input."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor, nn


class Convolution(Protocol):
    """The options of a convolution over some axes that its padding depends on, as those of ``nn.Conv2d``."""

    @property
    def kernel_size(self) -> tuple[int, ...]:
        """One size an axis."""

    @property
    def dilation(self) -> tuple[int, ...]:
        """One number an axis."""

    @property
    def padding(self) -> str | tuple[int, ...]:
        """One number an axis, "same" or "valid"."""

    @property
    def padding_mode(self) -> str:
        """A mode of torch.nn.functional.pad, or "zeros"."""


def padded(x: Tensor, conv: Convolution) -> tuple[Tensor, tuple[int, ...]]:
    """Pad x as far as torch's convolutions don't do it themselves.

    Returns:
        x, padded if the padding is not of zeros or not symmetric, and the padding left to the convolution, one number
        for each spatial axis.
    """
    own = own_padding(conv)
    if own is not None:
        return x, own
    return pad_fully(x, conv), (0,) * len(conv.kernel_size)


def pad_fully(x: Tensor, conv: Convolution) -> Tensor:
    """Pad x of shape (..., *spatial) by the whole padding of a convolution; x itself if that is 0."""
    # torch.nn.functional.pad takes the widths of the last axis first
    widths = [width for side in reversed(padding_sides(conv)) for width in side]
    if not any(widths):
        return x
    return nn.functional.pad(x, widths, mode="constant" if conv.padding_mode == "zeros" else conv.padding_mode)


def own_padding(conv: Convolution) -> tuple[int, ...] | None:
    """The padding that a convolution does by itself: zeros, as many before as after each axis; None for any other."""
    sides = padding_sides(conv)
    if conv.padding_mode == "zeros" and all(before == after for before, after in sides):
        return tuple(before for before, _ in sides)
    return None


def padding_sides(conv: Convolution) -> list[tuple[int, int]]:
    """Padding of a convolution before and after each axis."""
    if isinstance(conv.padding, tuple):
        return [(width, width) for width in conv.padding]
    if conv.padding == "valid":
        return [(0, 0)] * len(conv.kernel_size)
    whole = [d * (size - 1) for d, size in zip(conv.dilation, conv.kernel_size, strict=True)]
    return [(width // 2, width - width // 2) for width in whole]
