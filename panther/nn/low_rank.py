"""A linear layer of low rank in 8 bits, simulated in torch as the exported file computes it."""

from __future__ import annotations

from torch import Tensor, nn

from panther.nn.quantized import Int8Linear


class Int8LowRank(nn.Module):
    """Two 8-bit linear layers one after the other, in place of a wide one: y = second(first(x)).

    Both round their own inputs on fixed scales, so that a row's output does not depend on its batch. An exported file
    has two integer products.

    Args:
        first: d_in to rank, without a bias.
        second: rank to d_out.
    """

    def __init__(self, first: Int8Linear, second: Int8Linear) -> None:
        super().__init__()
        if first.out_features != second.in_features:
            raise ValueError(
                f"first has {first.out_features} output features and second takes {second.in_features}; "
                "both must be the rank"
            )
        self.in_features, self.out_features = first.in_features, second.out_features
        self.rank = first.out_features
        self.first, self.second = first, second

    def forward(self, x: Tensor) -> Tensor:
        """Multiply by one factor, then by the other."""
        y: Tensor = self.second(self.first(x))
        return y

    @property
    def weight(self) -> Tensor:
        """(d_out, d_in), the product of the factors."""
        return self.second.weight @ self.first.weight

    @property
    def bias(self) -> Tensor | None:
        """(d_out,), or None."""
        return self.second.bias

    @property
    def stored_bytes(self) -> int:
        """Bytes of both factors, with their scales and the bias."""
        return self.first.stored_bytes + self.second.stored_bytes

    def extra_repr(self) -> str:
        """The sizes."""
        return f"in_features={self.in_features}, out_features={self.out_features}, rank={self.rank}"
