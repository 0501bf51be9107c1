"""Head of a language model that shares the factors of its embedding.

See docs/decisions/0090-tied-heads-on-shared-factors.md.
"""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor, nn

from panther.counting import ParameterCount
from panther.nn.embedding import LowRankTable


class LowRankHead(LowRankTable):
    """A linear layer whose weight is the product of an embedding's two factors; replaces a tied ``nn.Linear``.

    y = (x @ Bᵀ) @ Aᵀ + bias: with A and B of a `LowRankEmbedding` the weight A @ B (out_features, in_features) is the
    table, so both stay tied. `panther.sketch_` replaces a head that shares its weight with an embedding by this layer.

    Args:
        in_features, out_features, bias, device, dtype: as for ``nn.Linear``.
        rank: r, the columns of A.
        generator: source of the initial values; torch's global generator when None.

    Attributes:
        A: (out_features, rank), Parameter.
        B: (rank, in_features), Parameter.
        bias: (out_features,), Parameter, or None.

    Raises:
        ValueError: a size is out of range.
        TypeError: a size is not an integer.

    >>> import torch
    >>> from panther.nn import LowRankEmbedding
    >>> table, head = LowRankEmbedding(10_000, 256, rank=32), LowRankHead(256, 10_000, rank=32)
    >>> head.tie_to(table)
    >>> head(table(torch.tensor([4, 8, 15]))).shape
    torch.Size([3, 10000])
    """

    bias: nn.Parameter | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rank: int,
        bias: bool = False,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(out_features, in_features, rank, None, None, generator, device=device, dtype=dtype)
        self.in_features, self.out_features = in_features, out_features
        self.register_parameter(
            "bias", nn.Parameter(torch.zeros(out_features, device=device, dtype=dtype)) if bias else None
        )

    @classmethod
    def like(cls, layer: nn.Linear, rank: int, *, device: torch.device | str | None = None) -> Self:
        """Make a head with the sizes, dtype and device of a linear layer; its factors and bias have no values yet."""
        made = cls(
            layer.in_features,
            layer.out_features,
            rank,
            bias=layer.bias is not None,
            device="meta",
            dtype=layer.weight.dtype,
        )
        return made.placed_like(layer.weight, device).train(layer.training)

    def parameter_count(self) -> ParameterCount:
        """Count the entries of A, B and the bias, all learnable, and those of the dense layer."""
        biases = 0 if self.bias is None else self.out_features
        return super().parameter_count() + ParameterCount(biases, biases, 0)

    def multiply_adds_per_row(self) -> tuple[int, int]:
        """Multiply-adds per row: of this layer, and of the dense layer."""
        d, V = self.in_features, self.out_features
        return self.rank * (d + V), d * V

    def forward(self, x: Tensor) -> Tensor:
        """Map (…, in_features) to (…, out_features)."""
        return nn.functional.linear(nn.functional.linear(x, self.B), self.A, self.bias)

    def extra_repr(self) -> str:
        """The sizes."""
        return f"{self.in_features}, {self.out_features}, rank={self.rank}, bias={self.bias is not None}"
