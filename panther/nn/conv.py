"""The sketched convolutions.

See docs/decisions/0072-sketched-convolutions.md.
"""

from __future__ import annotations

from torch import nn

from panther.nn.sketched_conv import SketchedConv


class SKConv2d(SketchedConv):
    """A convolution whose weight is a sum of sketched low-rank terms; replaces ``nn.Conv2d``.

    y = 1/(2L) · Σ_i ( (x * S1s[i]) * U1s[i]  +  (x * U2s[i]) * S2s[i] ) + bias, with L = num_terms and k = low_rank

    A term of the first kind is a learned convolution with the layer's kernel to k channels, followed by a fixed 1x1
    convolution to all; one of the second kind is a fixed 1x1 convolution to k channels, followed by a learned one with
    the kernel. It is the formula of `SKLinear` on the patches of x, with U on the channels alone.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device, dtype: as
            for ``nn.Conv2d``.
        num_terms: L; there are 2L terms.
        low_rank: k, the channels between the two convolutions of a term, for each group.
        terms: ``"both"`` for L terms of each kind; ``"output"`` for 2L of the first kind, as in the public
            ``panther-ml`` package, whose checkpoints load; ``"input"`` for 2L of the second.
        sketch: the distribution of U: ``"sign"``, ``"gaussian"`` or ``"orthonormal"`` (`panther.sketch`).
        generator: of U and the initial S and bias; torch's global one when None.

    Attributes:
        S1s: (groups·L₁k, C_in/groups, kH, kW), Parameter; L₁ is L, 2L for ``"output"``, and S1s None for ``"input"``.
        U1s: (L₁, k, C_out), buffer, fixed; ±1/√k when sketch is "sign".
        U2s: (L₂, C_in, k), buffer, fixed, of the same kind; L₁ + L₂ = 2L.
        S2s: (C_out, L₂k, kH, kW), Parameter; None for ``"output"``.
        bias: (C_out,), Parameter or None.

    Raises:
        ValueError: a size or option is out of range, or the convolution is depthwise: there is no rank across the
            channels of a group of one.
        TypeError: an argument is of the wrong type.

    Warns:
        UserWarning: the layer stores more weights than the dense one.

    >>> import torch
    >>> layer = SKConv2d(64, 128, 3, num_terms=1, low_rank=16, padding="same")
    >>> layer(torch.zeros(8, 64, 28, 28)).shape
    torch.Size([8, 128, 28, 28])
    """

    axes = 2
    dense_type = nn.Conv2d


class SKConv1d(SketchedConv):
    """A convolution over one axis whose weight is a sum of sketched low-rank terms; replaces ``nn.Conv1d``.

    As `SKConv2d`, with one spatial axis.

    >>> import torch
    >>> SKConv1d(64, 64, 5, num_terms=1, low_rank=8, padding=2)(torch.zeros(8, 64, 100)).shape
    torch.Size([8, 64, 100])
    """

    axes = 1
    dense_type = nn.Conv1d
