"""A linear layer with 8-bit weights and 8-bit activations on fixed scales."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from panther.nn.quantized.checks import float_copy

# levels of the 8-bit activations
LEVELS = 255


class Int8Linear(nn.Module):
    """A linear layer with 8-bit weights and 8-bit activations of a fixed scale.

    With x̂ = clamp(round(x · smoothing / s) + z, 0, 255), y = (x̂ - z) Ŵᵀ · s · weight_scale + bias. Scale s and zero
    point z are constants, so that a row's output never depends on the other rows of its batch. An exported file holds
    the same integers and multiplies them in integer arithmetic.

    Args:
        weight_int8: (d_out, d_in), int8; Ŵ · weight_scale is the weight times the reciprocal of smoothing.
        weight_scale: (d_out,), float32.
        input_scale: s.
        input_zero_point: z, from 0 to 255.
        smoothing: (d_in,), what x is multiplied by before it is rounded; None for ones.
        bias: (d_out,), or None.
    """

    weight_int8: Tensor
    weight_scale: Tensor
    input_scale: Tensor
    input_zero_point: Tensor
    smoothing: Tensor | None

    def __init__(
        self,
        weight_int8: Tensor,
        weight_scale: Tensor,
        input_scale: float,
        input_zero_point: int,
        smoothing: Tensor | None = None,
        bias: Tensor | None = None,
    ) -> None:
        super().__init__()
        if weight_int8.dtype != torch.int8 or weight_int8.dim() != 2:
            raise ValueError(
                f"weight_int8 ({weight_int8.dtype}, {weight_int8.dim()} axes) must be a matrix of torch.int8"
            )
        if not 0 <= input_zero_point <= LEVELS:
            raise ValueError(f"input_zero_point ({input_zero_point}) must be from 0 to {LEVELS}")
        if not 0 < input_scale < float("inf"):
            raise ValueError(f"input_scale ({input_scale}) must be positive and finite")
        self.out_features, self.in_features = weight_int8.shape
        device = weight_int8.device
        self.register_buffer("weight_int8", weight_int8.contiguous())
        self.register_buffer("weight_scale", float_copy(weight_scale, (self.out_features,), "weight_scale"))
        self.register_buffer("input_scale", torch.tensor(input_scale, dtype=torch.float32, device=device))
        self.register_buffer("input_zero_point", torch.tensor(input_zero_point, dtype=torch.uint8, device=device))
        smooth = None if smoothing is None else float_copy(smoothing, (self.in_features,), "smoothing")
        self.register_buffer("smoothing", smooth)
        bias = None if bias is None else float_copy(bias, (self.out_features,), "bias")
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """Round the activations, multiply by the 8-bit weights, and scale back."""
        q = self.quantized_input(x)
        y = q @ self.weight_int8.to(q.dtype).t() * (self.input_scale * self.weight_scale).to(q.dtype)
        return (y if self.bias is None else y + self.bias).to(x.dtype)

    def quantized_input(self, x: Tensor) -> Tensor:
        """The rounded activations less their zero point: integers from -z to 255 - z, as floats."""
        # sums of integers overflow in half precision
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        smoothed = x if self.smoothing is None else x * self.smoothing
        zero_point = self.input_zero_point.to(smoothed.dtype)
        return (torch.round(smoothed / self.input_scale) + zero_point).clamp(0, LEVELS) - zero_point

    @property
    def weight(self) -> Tensor:
        """(d_out, d_in), the 8-bit weight as floating-point numbers."""
        dense = self.weight_int8.to(self.weight_scale.dtype) * self.weight_scale.unsqueeze(1)
        return dense if self.smoothing is None else dense * self.smoothing

    @property
    def stored_bytes(self) -> int:
        """Bytes of the weight, the scales, the smoothing and the bias."""
        return sum(tensor.nbytes for tensor in (*self.buffers(), *self.parameters()))

    def extra_repr(self) -> str:
        """The sizes and the range of the activations."""
        s, z = float(self.input_scale), int(self.input_zero_point)
        smoothed = "" if self.smoothing is None else ", smoothed"
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, "
            f"range=[{-z * s:.3g}, {(LEVELS - z) * s:.3g}]{smoothed}"
        )
