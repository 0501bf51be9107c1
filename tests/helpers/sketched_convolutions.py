"""Sketched convolutions to test, and what they must compute: the dense convolution written out from the definition."""

from __future__ import annotations

import itertools
import warnings

import numpy as np
import torch
from torch import nn

from panther.nn import SKConv2d


def make(kind=SKConv2d, in_channels=8, out_channels=12, kernel_size=3, num_terms=2, low_rank=2, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        generator = torch.Generator().manual_seed(1)
        return kind(in_channels, out_channels, kernel_size, num_terms, low_rank, generator=generator, **options)


def image(*shape: int, dtype=torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64).to(dtype)


def written_out(layer) -> np.ndarray:
    """The weight of the dense convolution, entry by entry from the definition."""
    L, k, g = layer.num_terms, layer.low_rank, layer.groups
    c_in, c_out = layer.in_channels // g, layer.out_channels // g
    terms = [None if t is None else t.detach().double().numpy() for t in layer.all_terms()]
    S1s, U1s, U2s, S2s = terms
    W = np.zeros((layer.out_channels, c_in, *layer.kernel_size))
    for out in range(layer.out_channels):
        group = out // c_out
        if S1s is not None:
            for i, j in itertools.product(range(len(U1s)), range(k)):
                W[out] += U1s[i, j, out] * S1s[group * len(U1s) * k + i * k + j]
        if S2s is not None:
            for i, j, c in itertools.product(range(len(U2s)), range(k), range(c_in)):
                W[out, c] += U2s[i, group * c_in + c, j] * S2s[out, i * k + j]
    return W / (2 * L)


def oracle(layer, x: torch.Tensor) -> torch.Tensor:
    """A torch convolution in float64 that has the weight of the definition."""
    dense = {1: nn.Conv1d, 2: nn.Conv2d}[layer.axes](
        layer.in_channels,
        layer.out_channels,
        layer.kernel_size,
        layer.stride,
        layer.padding,
        layer.dilation,
        layer.groups,
        bias=layer.bias is not None,
        padding_mode=layer.padding_mode,
        dtype=torch.float64,
    )
    with torch.no_grad():
        dense.weight.copy_(torch.from_numpy(written_out(layer)))
        if layer.bias is not None:
            dense.bias.copy_(layer.bias)
    return dense(x.double())


def error(y: torch.Tensor, expected: torch.Tensor) -> float:
    return ((y.double() - expected).abs().max() / expected.abs().max()).item()
