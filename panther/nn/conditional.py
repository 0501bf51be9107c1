"""A layer that is dense for few rows and sketched for many."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor, nn

from panther.linalg.sketch import Sketch
from panther.nn.linear import SKLinear


class ConditionalSKLinear(nn.Module):
    """A layer that uses ``standard_layer`` for few rows and ``sketched_layer`` for many.

    Made by the constructor, the branches are two unrelated layers, each with its own parameters. Made by
    `from_linear`, both approximate the same weights: the standard branch exactly, the sketched one as well as it can.

    A graph of fixed form holds one branch: export `as_standard()` or `as_sketched()`.

    Args:
        in_features: d_in.
        out_features: d_out.
        sketch_threshold: the number of rows (all axes but the last) from which the sketched branch is used.
        num_terms, low_rank: of the sketched branch.
        bias, dtype, device: of both.
        sketch, generator: as for `SKLinear`.

    Attributes:
        standard_layer: an ``nn.Linear``.
        sketched_layer: an `SKLinear`.
        sketch_threshold: may be changed at any time.

    Raises:
        ValueError: sketch_threshold is negative, or an argument is wrong for `SKLinear`.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        sketch_threshold: int = 1000,
        num_terms: int = 8,
        low_rank: int = 64,
        *,
        bias: bool = True,
        dtype: torch.dtype | None = None,
        device: torch.device | str | int | None = None,
        sketch: Sketch = "sign",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        sketched = SKLinear(
            in_features,
            out_features,
            num_terms,
            low_rank,
            bias=bias,
            dtype=dtype,
            device=device,
            sketch=sketch,
            generator=generator,
        )
        standard = nn.Linear(in_features, out_features, bias=bias, dtype=dtype, device=device)
        self._set_branches(standard, sketched, sketch_threshold)

    @classmethod
    def from_linear(
        cls,
        linear: nn.Linear,
        num_terms: int = 8,
        low_rank: int = 64,
        *,
        sketch_threshold: int = 1000,
        sketch: Sketch = "sign",
        generator: torch.Generator | None = None,
    ) -> Self:
        """Make both branches approximate the weights of a trained layer.

        The standard branch becomes the layer itself (not a copy); the sketched one starts at the best approximation of
        it that its fixed matrices allow. Further training changes them independently.

        Raises:
            TypeError: linear is not an nn.Linear.
            ValueError: as for the constructor.
        """
        if not isinstance(linear, nn.Linear):
            raise TypeError(f"linear must be an nn.Linear, not {type(linear).__name__}")
        sketched = SKLinear(
            linear.in_features,
            linear.out_features,
            num_terms,
            low_rank,
            W_init=linear.weight.detach(),
            bias=linear.bias is not None,
            dtype=linear.weight.dtype,
            device=linear.weight.device,
            sketch=sketch,
            generator=generator,
        )
        if linear.bias is not None:
            with torch.no_grad():
                sketched.bias.copy_(linear.bias)
        layer = cls.__new__(cls)
        nn.Module.__init__(layer)
        layer._set_branches(linear, sketched, sketch_threshold)
        return layer.train(linear.training)

    def _set_branches(self, standard: nn.Linear, sketched: SKLinear, sketch_threshold: int) -> None:
        if isinstance(sketch_threshold, bool) or not isinstance(sketch_threshold, int):
            raise TypeError(
                f"sketch_threshold ({sketch_threshold!r}) must be an integer, not {type(sketch_threshold).__name__}"
            )
        if sketch_threshold < 0:
            raise ValueError(f"sketch_threshold ({sketch_threshold}) must not be negative")
        self.in_features = sketched.in_features
        self.out_features = sketched.out_features
        self.sketch_threshold = sketch_threshold
        self.standard_layer = standard
        self.sketched_layer = sketched

    def forward(self, x: Tensor) -> Tensor:
        """Map x of shape (..., in_features) to (..., out_features) by the branch for its number of rows."""
        rows = 1
        for size in x.shape[:-1]:
            rows *= size
        branch = self.standard_layer if rows < self.sketch_threshold else self.sketched_layer
        return branch(x)  # type: ignore[no-any-return]

    def as_standard(self) -> nn.Linear:
        """The dense branch, to export or to keep alone."""
        return self.standard_layer

    def as_sketched(self) -> SKLinear:
        """The sketched branch, to export or to keep alone."""
        return self.sketched_layer

    def extra_repr(self) -> str:
        """Settings that the children's reprs do not show."""
        return f"sketch_threshold={self.sketch_threshold}"
