"""A quantized linear layer with a low-rank correction, and low-rank factors in few bits."""

from __future__ import annotations

from torch import Tensor, nn

from panther.nn.quantized.blocks import BlockLinear


class FactoredLinear(nn.Module):
    """Two quantized factors in sequence, y = (x Âᵀ) B̂ᵀ + bias, with Â (rank, d_in) and B̂ (d_out, rank).

    Args:
        down: d_in → rank.
        up: rank → d_out; has the bias.
    """

    def __init__(self, down: BlockLinear, up: BlockLinear) -> None:
        super().__init__()
        if down.out_features != up.in_features:
            raise ValueError(f"down has {down.out_features} output features and up takes {up.in_features}")
        self.in_features, self.out_features = down.in_features, up.out_features
        self.down, self.up = down, up

    def forward(self, x: Tensor) -> Tensor:
        """Through both factors."""
        y: Tensor = self.up(self.down(x))
        return y

    @property
    def rank(self) -> int:
        """Width between the factors."""
        return self.down.out_features

    @property
    def weight(self) -> Tensor:
        """(d_out, d_in), their product."""
        return self.up.weight @ self.down.weight

    @property
    def bias(self) -> Tensor | None:
        """(d_out,), or None."""
        return self.up.bias

    @property
    def stored_bytes(self) -> int:
        """Bytes of both factors and the bias."""
        return self.down.stored_bytes + self.up.stored_bytes


class CorrectedLinear(nn.Module):
    """A quantized layer plus a low-rank correction of its error: y = base(x) + correction(x).

    Args:
        base: holds the weight and the bias.
        correction: of the same sizes, without a bias.
    """

    def __init__(self, base: BlockLinear, correction: FactoredLinear) -> None:
        super().__init__()
        sizes, others = ((m.in_features, m.out_features) for m in (base, correction))
        if sizes != others or correction.bias is not None:
            raise ValueError(f"correction {others} must have the sizes of base {sizes} and no bias")
        self.in_features, self.out_features = sizes
        self.base, self.correction = base, correction

    def forward(self, x: Tensor) -> Tensor:
        """The layer and its correction."""
        y: Tensor = self.base(x) + self.correction(x)
        return y

    def with_bias(self, bias: Tensor | None) -> CorrectedLinear:
        """A layer that shares this weight, with another bias."""
        return CorrectedLinear(self.base.with_bias(bias), self.correction)

    @property
    def weight(self) -> Tensor:
        """(d_out, d_in), corrected."""
        return self.base.weight + self.correction.weight

    @property
    def bias(self) -> Tensor | None:
        """(d_out,), or None."""
        return self.base.bias

    @property
    def stored_bytes(self) -> int:
        """Bytes of the layer and its correction."""
        return self.base.stored_bytes + self.correction.stored_bytes
