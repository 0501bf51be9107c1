"""A network of sketched layers that never costs more than its dense twin."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import nn

from panther.counting import check_parameter_efficiency
from panther.linalg.sketch import Sketch, uniform_
from panther.nn.linear import SKLinear

# a layer that needs a smaller low_rank to save parameters is better left dense
MIN_LOW_RANK = 8


def sketched_mlp(
    input_dim: int,
    hidden_dims: Sequence[int],
    output_dim: int,
    *,
    num_terms: int | Sequence[int] | None = None,
    low_rank: int | Sequence[int] | None = None,
    activation: Callable[[], nn.Module] = nn.ReLU,
    dropout: float = 0.1,
    allow_larger: bool = False,
    bias: bool = True,
    dtype: torch.dtype | None = None,
    device: torch.device | str | int | None = None,
    sketch: Sketch = "sign",
    generator: torch.Generator | None = None,
) -> nn.Sequential:
    """Build input → hidden, activation, dropout → … → output; linear layers are sketched if that saves parameters.

    The default sizes follow the tutorial: deeper layers have less complexity. A layer that would store more weights
    than nn.Linear gets fewer terms, then a smaller low_rank, until it stores fewer. If not even one term with low_rank
    8 does, it is an nn.Linear.

    Args:
        input_dim: width of the input.
        hidden_dims: widths of the hidden layers; may be empty.
        output_dim: width of the output, which gets neither activation nor dropout.
        num_terms: of every layer, or one a layer, the output's included; when None 8, 7, … down to 2, and 2 for the
            output.
        low_rank: likewise; when None 64, 56, … down to 16, and 16 for the output.
        activation: makes the module after each hidden layer.
        dropout: probability of dropout after each activation; 0 for none.
        allow_larger: keep the given sizes, even if a layer then stores more than nn.Linear.
        bias, dtype, device, sketch: as for `SKLinear`.
        generator: of all weights, also those of nn.Linear; torch's global one when None.

    Raises:
        ValueError: a width is below 1, or the number of sizes is not that of the layers.

    >>> model = sketched_mlp(784, [512, 256, 128], 10)
    >>> [type(module).__name__ for module in model if not isinstance(module, (nn.ReLU, nn.Dropout))]
    ['SKLinear', 'SKLinear', 'SKLinear', 'Linear']
    """
    widths = (input_dim, *hidden_dims, output_dim)
    for width in widths:
        if isinstance(width, bool) or not isinstance(width, int):
            raise TypeError(f"width ({width!r}) must be an integer, not {type(width).__name__}")
        if width < 1:
            raise ValueError(f"width ({width}) must be at least 1")
    last = len(widths) - 2
    terms = _one_each("num_terms", num_terms, [max(2, 8 - i) for i in range(last)] + [2])
    low_ranks = _one_each("low_rank", low_rank, [max(16, 64 - 8 * i) for i in range(last)] + [16])
    layers: list[nn.Module] = []
    for i, (d_in, d_out, L, k) in enumerate(zip(widths, widths[1:], terms, low_ranks, strict=False)):
        sizes = (L, k) if allow_larger else _shrunk_to_pay(d_in, d_out, L, k)
        if sizes is None:
            dense = nn.Linear(d_in, d_out, bias=bias, dtype=dtype, device=device)
            layers.append(dense if generator is None else _redrawn(dense, generator))
        else:
            layers.append(
                SKLinear(d_in, d_out, *sizes, bias=bias, dtype=dtype, device=device, sketch=sketch, generator=generator)
            )
        if i < last:
            layers.append(activation())
            if dropout > 0:
                layers.append(nn.Dropout(dropout))
    return nn.Sequential(*layers)


def _redrawn(layer: nn.Linear, generator: torch.Generator) -> nn.Linear:
    """The layer with weight and bias from the distribution of a new nn.Linear, drawn with the generator."""
    with torch.no_grad():
        for parameter in layer.parameters():
            uniform_(parameter, 1 / math.sqrt(layer.in_features), generator)
    return layer


def _shrunk_to_pay(d_in: int, d_out: int, num_terms: int, low_rank: int) -> tuple[int, int] | None:
    """The sizes with as many terms as store fewer weights than dense, else one term with the low_rank that does."""
    for L in range(num_terms, 0, -1):
        if check_parameter_efficiency(d_in, d_out, L, low_rank)[0]:
            return L, low_rank
    for k in range(low_rank - low_rank % 8, MIN_LOW_RANK - 1, -8):
        if check_parameter_efficiency(d_in, d_out, 1, k)[0]:
            return 1, k
    return None


def _one_each(name: str, given: int | Sequence[int] | None, default: list[int]) -> list[int]:
    if given is None:
        return default
    if isinstance(given, int):
        return [given] * len(default)
    if len(given) != len(default):
        raise ValueError(f"{name} has {len(given)} entries and the network {len(default)} layers")
    return list(given)
