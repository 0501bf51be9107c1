"""Validation of the arguments of a sketched layer."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from panther.linalg.sketch import SKETCHES

PADDING_MODES = ("zeros", "reflect", "replicate", "circular")
LARGER_THAN_DENSE = "the sketched layer is the larger one; lower num_terms or low_rank"


def check_sizes(**sizes: int) -> None:
    """Refuse sizes that are not integers of at least 1."""
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, int):
            raise TypeError(f"{name} ({size!r}) must be an integer, not {type(size).__name__}")
        if size < 1:
            raise ValueError(f"{name} ({size}) must be at least 1")


def check_options(*, bias: bool, dtype: Any, sketch: str, generator: Any) -> None:
    """Refuse options of the wrong type, and an unknown sketch."""
    if not isinstance(bias, bool):
        raise TypeError(f"bias ({bias!r}) must be True or False, not {type(bias).__name__}")
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise TypeError(f"dtype ({dtype!r}) must be a floating-point torch.dtype or None")
    if sketch not in SKETCHES:
        raise ValueError(f"sketch ({sketch!r}) must be one of {', '.join(map(repr, SKETCHES))}")
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(f"generator ({generator!r}) must be a torch.Generator or None")


def check_weight(W_init: Tensor, in_features: int, out_features: int) -> None:
    """Refuse a weight of the wrong type or shape, or with values that are not finite."""
    if not isinstance(W_init, Tensor):
        raise TypeError(f"W_init must be a Tensor or None, not {type(W_init).__name__}")
    if W_init.shape != (out_features, in_features):
        raise ValueError(
            f"W_init of shape {tuple(W_init.shape)} must be (out_features, in_features) = "
            f"({out_features}, {in_features}), as the weight of nn.Linear"
        )
    if not W_init.is_floating_point():
        raise TypeError(f"W_init ({W_init.dtype}) must be of a floating-point type")
    if not W_init.is_meta and not bool(W_init.isfinite().all()):
        raise ValueError("W_init holds values that are not finite")


def warn_if_larger_than_dense(in_features: int, out_features: int, num_terms: int, low_rank: int) -> None:
    """Warn of a layer that stores more weights than nn.Linear; blames the caller of the layer's constructor."""
    stored, dense = 2 * num_terms * low_rank * (in_features + out_features), in_features * out_features
    if stored > dense:
        warnings.warn(
            f"SKLinear({in_features}, {out_features}, num_terms={num_terms}, low_rank={low_rank}) stores {stored:,} "
            f"weights, 2·num_terms·low_rank·(in_features + out_features); nn.Linear stores {dense:,}: "
            + LARGER_THAN_DENSE,
            UserWarning,
            stacklevel=3,
        )


def per_axis(name: str, value: Any, axes: int, *, least: int = 1) -> tuple[int, ...]:
    """An integer for each spatial axis, from one for all of them or a sequence."""
    values = tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else (value,) * axes
    if len(values) != axes:
        raise ValueError(f"{name} ({value!r}) must be one integer, or {axes}, one for each spatial axis")
    for entry in values:
        if isinstance(entry, bool) or not isinstance(entry, int):
            raise TypeError(f"{name} ({value!r}) must be an integer or a tuple of {axes}, not {type(entry).__name__}")
        if entry < least:
            raise ValueError(f"{name} ({value!r}) must be at least {least}")
    return values


def check_groups(in_channels: int, out_channels: int, groups: int) -> None:
    """Refuse groups that don't divide the channels, or leave one channel each: a depthwise convolution."""
    for name, channels in (("in_channels", in_channels), ("out_channels", out_channels)):
        if channels % groups:
            raise ValueError(f"{name} ({channels}) must be divisible by groups ({groups})")
    if groups > 1 and groups == in_channels:
        raise ValueError(
            f"groups ({groups}) equal to in_channels make a depthwise convolution: with one channel a group there is "
            "no rank to cut; use nn.Conv2d"
        )


def check_conv_kind(terms: str, known: Sequence[str]) -> None:
    """Refuse an unknown choice of the kinds of terms."""
    if terms not in known:
        raise ValueError(f"terms ({terms!r}) must be one of {', '.join(map(repr, known))}")


def check_conv_padding(padding: Any, padding_mode: str, stride: tuple[int, ...]) -> None:
    """Refuse paddings that nn.Conv2d does not have."""
    if padding_mode not in PADDING_MODES:
        raise ValueError(f"padding_mode ({padding_mode!r}) must be one of {', '.join(map(repr, PADDING_MODES))}")
    if isinstance(padding, str) and padding not in ("same", "valid"):
        raise ValueError(f"padding ({padding!r}) must be 'same', 'valid', an integer or a tuple of them")
    if padding == "same" and any(step != 1 for step in stride):
        raise ValueError(f"padding='same' needs stride 1, not {stride}: the output can't be as large as the input")


def check_conv_weight(W: Tensor) -> None:
    """Refuse the weight of a convolution that can't be decomposed."""
    if W.is_meta:
        raise ValueError("the weight of conv is on the device 'meta' and has no values; load it first")
    if not W.is_floating_point():
        raise TypeError(f"the weight of conv ({W.dtype}) must be of a floating-point type")
    if not bool(W.detach().isfinite().all()):
        raise ValueError("the weight of conv holds values that are not finite")


def warn_if_conv_larger_than_dense(said: str, stored: int, dense: int) -> None:
    """Warn of a convolution that stores more weights than nn.Conv2d; blames the caller of the layer's constructor."""
    if stored > dense:
        warnings.warn(
            f"{said} stores {stored:,} weights; nn.Conv2d stores {dense:,}: " + LARGER_THAN_DENSE,
            UserWarning,
            stacklevel=3,
        )
