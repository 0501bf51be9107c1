"""The mathematics of a sketched layer, in one place.

For x of shape (..., d_in), L = num_terms and k = low_rank the layer is

    y = 1/(2L) · Σ_i ( x · S1s[i] · U1s[i]  +  x · U2s[i] · S2s[i] ) + bias

(Kasiviswanathan, Narodytska, Jin, "Network Approximation using Tensor Sketching", IJCAI 2018). A sum of products of
matrices is one product of the matrices side by side, so the whole layer is two products, with A = [S1s… | U2s…] and
B = [U1s… ; S2s…]. Of a convolution one half of each product is a 1x1 convolution by U. docs/math.md has the
derivations.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, cat
from torch.nn.functional import conv1d, conv2d


def factors(S1s: Tensor, U1s: Tensor, U2s: Tensor, S2s: Tensor) -> tuple[Tensor, Tensor]:
    """Put the terms side by side.

    Args:
        S1s: (L, d_in, k), learnable.
        U1s: (L, k, d_out), fixed.
        U2s: (L, d_in, k), fixed.
        S2s: (L, k, d_out), learnable.

    Returns:
        A of shape (d_in, 2Lk) and B of shape (2Lk, d_out), so that Σ_i (S1s[i] U1s[i] + U2s[i] S2s[i]) = A @ B.
    """
    A = cat([_side_by_side(S1s), _side_by_side(U2s)], dim=1)
    B = cat([U1s.flatten(0, 1), S2s.flatten(0, 1)], dim=0)
    return A, B


def two_products(x: Tensor, A: Tensor, B: Tensor, num_terms: int, bias: Tensor | None = None) -> Tensor:
    """Apply a sketched linear layer with concatenated terms: its definition in one line.

    Args:
        x: (..., d_in).
        A: (d_in, 2Lk) of `factors`.
        B: (2Lk, d_out) of `factors`.
        num_terms: L.
        bias: (d_out,) or None.

    Returns:
        y of shape (..., d_out).
    """
    L = num_terms
    if bias is None:
        return (x @ A) @ B / (2 * L)
    return (x @ A) @ B / (2 * L) + bias


def sketched_linear(
    x: Tensor, S1s: Tensor, U1s: Tensor, U2s: Tensor, S2s: Tensor, bias: Tensor | None = None
) -> Tensor:
    """Apply a sketched linear layer to terms anywhere in memory.

    Computes `two_products` with A and B each taken in two halves, so that nothing has to be copied side by side:
    (x @ A) @ B = (x @ [S1s…]) @ [U1s…] + (x @ [U2s…]) @ [S2s…]. Made of plain operations, so that every transformation
    of torch (compile, export, vmap, forward and higher derivatives) goes through it.

    Args:
        x: (..., d_in).
        S1s, U1s, U2s, S2s: the terms, with the shapes that `factors` takes.
        bias: (d_out,) or None.

    Returns:
        y of shape (..., d_out).
    """
    L, d_in, _ = S1s.shape
    scale = 1 / (2 * L)
    rows = x.reshape(-1, d_in)
    learned, fixed = _hidden(rows, S1s, L), _hidden(rows, U2s, L)
    if bias is None:
        y = (learned * scale) @ U1s.flatten(0, 1)
    else:
        y = torch.addmm(bias, learned, U1s.flatten(0, 1), alpha=scale)
    y = torch.addmm(y, fixed, S2s.flatten(0, 1), alpha=scale)
    if isinstance(x, Tensor) and x.dim() == 2:
        # not a view of it: FSDP warns about views
        return y
    # sum of shapes, since a torch.fx proxy can't be unpacked
    return y.reshape(x.shape[:-1] + (S2s.shape[-1],))  # noqa: RUF005


def _hidden(rows: Tensor, terms: Tensor, L: int) -> Tensor:
    """(N, d_in), (L, d_in, k) → (N, L·k): rows @ [terms side by side]."""
    return torch.bmm(rows.expand(L, -1, -1), terms).transpose(0, 1).flatten(1)


def _side_by_side(terms: Tensor) -> Tensor:
    """(L, d_in, k) → (d_in, L·k), the terms as blocks of columns."""
    return terms.transpose(0, 1).flatten(1)


class ConvOptions(NamedTuple):
    """Geometry of a convolution, as in `torch.nn.functional.conv2d`; one number for each axis."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int


class ConvTerms(NamedTuple):
    """The terms of a sketched convolution; those of a kind that the layer does not have are None.

    Attributes:
        S1s: (groups·L₁k, C_in/groups, *kernel), the weight of a convolution, learnable.
        U1s: (L₁, k, C_out), fixed.
        U2s: (L₂, C_in, k), fixed.
        S2s: (C_out, L₂k, *kernel), the weight of a convolution, learnable.
    """

    S1s: Tensor | None
    U1s: Tensor | None
    U2s: Tensor | None
    S2s: Tensor | None


def sketched_conv(x: Tensor, terms: ConvTerms, bias: Tensor | None, num_terms: int, options: ConvOptions) -> Tensor:
    """Apply a sketched convolution, * being the convolution over the spatial axes.

    y = 1/(2L) · ( (x * S1s) * [U1s…]  +  (x * [U2s…]) * S2s ) + bias

    U1s and U2s are 1x1 convolutions, S1s and S2s have the layer's kernel. There are 2L terms, L₁ + L₂ = 2L.

    Args:
        x: (N, C_in, *spatial), or without N.
        terms: the learnable and the fixed ones.
        bias: (C_out,) or None.
        num_terms: L.
        options: of the convolutions by S1s and S2s.

    Returns:
        y of shape (N, C_out, *spatial).
    """
    S1s, U1s, U2s, S2s = terms
    scale, groups, axes = 1 / (2 * num_terms), options.groups, len(options.stride)
    of_axes = conv1d if axes == 1 else conv2d
    y = None
    if S1s is not None and U1s is not None:
        hidden = of_axes(x, S1s, None, *options)
        y = of_axes(hidden, _pointwise(up_weight(U1s) * scale, axes), bias, groups=groups)
    if S2s is not None and U2s is not None:
        hidden = of_axes(x, _pointwise(down_weight(U2s, groups) * scale, axes), groups=groups)
        fixed_first = of_axes(hidden, S2s, bias if y is None else None, *options)
        y = fixed_first if y is None else y + fixed_first
    if y is None:
        raise ValueError("a sketched convolution needs terms of one kind at least")
    return y


def up_weight(U1s: Tensor) -> Tensor:
    """(L, k, C_out) → (C_out, L·k), the weight of a 1x1 convolution of any number of groups."""
    return U1s.flatten(0, 1).t()


def down_weight(U2s: Tensor, groups: int) -> Tensor:
    """(L, C_in, k) → (groups·L·k, C_in/groups), the weight of a 1x1 convolution."""
    return torch.unflatten(U2s, 1, (groups, -1)).permute(1, 0, 3, 2).flatten(0, 2)


def conv_weight(terms: ConvTerms, num_terms: int, groups: int) -> Tensor:
    """The weight of the convolution that computes the same as `sketched_conv`, (C_out, C_in/groups, *kernel)."""
    S1s, U1s, U2s, S2s = terms
    scale = 1 / (2 * num_terms)
    parts = []
    if S1s is not None and U1s is not None:
        up, first = by_group(up_weight(U1s), groups), by_group(S1s, groups)
        parts.append(torch.einsum("gor,grc...->goc...", up, first).flatten(0, 1))
    if S2s is not None and U2s is not None:
        down, second = by_group(down_weight(U2s, groups), groups), by_group(S2s, groups)
        parts.append(torch.einsum("gor...,grc->goc...", second, down).flatten(0, 1))
    return sum(parts[1:], start=parts[0]) * scale


def by_group(W: Tensor, groups: int) -> Tensor:
    """(groups·n, …) → (groups, n, …)."""
    return W.reshape(groups, len(W) // groups, *W.shape[1:])


def _pointwise(W: Tensor, axes: int) -> Tensor:
    """(C_out, C_in) → the weight of a 1x1 convolution over so many axes."""
    return W[(..., *[None] * axes)]
