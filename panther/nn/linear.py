"""The sketched linear layer."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from panther.efficiency import ParameterCount, count_parameters
from panther.nn import functional
from panther.sketch import sign_sketch


class SKLinear(nn.Module):
    """A linear layer whose weight is a sum of sketched low-rank terms; stands in for ``nn.Linear``.

    y = 1/(2L) · Σ_i ( x · S1s[i] · U1s[i] + x · U2s[i] · S2s[i] ) + bias, with L = num_terms and k = low_rank
    (Kasiviswanathan, Narodytska, Jin, IJCAI 2018). The names, shapes and state_dict keys are those of the public
    ``panther-ml`` package.

    Args:
        in_features: d_in, size of the last axis of the input.
        out_features: d_out, size of the last axis of the output.
        num_terms: L, the number of terms of each kind.
        low_rank: k, the rank of each term.
        bias: whether to learn an additive bias.
        dtype: floating-point type of the parameters; torch's default when None.
        device: where they lie; torch's default when None.
        generator: where U and the initial S and bias come from; torch's global one when None.

    Attributes:
        S1s: (L, d_in, k), Parameter.
        U1s: (L, k, d_out), buffer, ±1/√k, fixed.
        U2s: (L, d_in, k), buffer, ±1/√k, fixed.
        S2s: (L, k, d_out), Parameter.
        bias: (d_out,), Parameter or None.

    Raises:
        ValueError: a size is below 1.
        TypeError: a size is not an integer.

    >>> layer = SKLinear(784, 512, num_terms=2, low_rank=64)
    >>> layer(torch.zeros(32, 784)).shape
    torch.Size([32, 512])
    """

    U1s: Tensor
    U2s: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        num_terms: int,
        low_rank: int,
        *,
        bias: bool = True,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        sizes = {
            "in_features": in_features,
            "out_features": out_features,
            "num_terms": num_terms,
            "low_rank": low_rank,
        }
        for name, size in sizes.items():
            if isinstance(size, bool) or not isinstance(size, int):
                raise TypeError(f"{name} ({size!r}) must be an integer, not {type(size).__name__}")
            if size < 1:
                raise ValueError(f"{name} ({size}) must be at least 1")
        self.in_features = in_features
        self.out_features = out_features
        self.num_terms = num_terms
        self.low_rank = low_rank

        L, k = num_terms, low_rank
        self.S1s = nn.Parameter(torch.empty(L, in_features, k, dtype=dtype, device=device))
        self.S2s = nn.Parameter(torch.empty(L, k, out_features, dtype=dtype, device=device))
        if bias:
            self.bias = nn.Parameter(torch.empty(out_features, dtype=dtype, device=device))
        else:
            self.register_parameter("bias", None)
        for name, shape in (("U1s", (L, k, out_features)), ("U2s", (L, in_features, k))):
            U = sign_sketch(*shape, low_rank=k, generator=generator, dtype=dtype, device=device)
            self.register_buffer(name, U)
        self.reset_parameters(generator)

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw S1s, S2s and bias anew; U stays.

        An entry of S·U or U·S has the variance σ² of an entry of S, and the 2L terms are divided by 2L, so an entry of
        the whole weight has the variance σ²/(2L). A fresh nn.Linear has 1/(3·d_in): S uniform within ±√(2L/d_in).
        """
        S_bound = math.sqrt(2 * self.num_terms / self.in_features)
        bias_bound = 1 / math.sqrt(self.in_features)
        with torch.no_grad():
            for S in (self.S1s, self.S2s):
                S.uniform_(-S_bound, S_bound, generator=generator)
            if self.bias is not None:
                self.bias.uniform_(-bias_bound, bias_bound, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        """Map x of shape (..., in_features) to (..., out_features)."""
        if x.shape[-1] != self.in_features:
            raise ValueError(f"input has {x.shape[-1]} features in its last axis; in_features is {self.in_features}")
        return functional.sketched_linear(x, self.S1s, self.U1s, self.U2s, self.S2s, self.bias)

    def factors(self) -> tuple[Tensor, Tensor]:
        """A (d_in, 2Lk) and B (2Lk, d_out) of y = (x @ A) @ B / (2L) + bias."""
        return functional.factors(self.S1s, self.U1s, self.U2s, self.S2s)

    def parameter_count(self) -> ParameterCount:
        """Dense, learnable and fixed parameters of this layer."""
        return count_parameters(
            self.in_features, self.out_features, self.num_terms, self.low_rank, bias=self.bias is not None
        )

    def extra_repr(self) -> str:
        """The sizes, as in the repr of nn.Linear."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"num_terms={self.num_terms}, low_rank={self.low_rank}, bias={self.bias is not None}"
        )
