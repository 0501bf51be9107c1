"""The sketched linear layer.

See docs/decisions/0038-factors-in-one-memory-block.md.
See docs/decisions/0039-eager-fast-path-only.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from panther.counting import ParameterCount, count_parameters
from panther.linalg.sketch import Sketch, draw_sketches, uniform_
from panther.linalg.svd import truncated_svd
from panther.linalg.terms import best_terms, terms_of_factors
from panther.nn import functional, kernels
from panther.nn.checks import LARGER_THAN_DENSE, check_options, check_sizes, check_weight, warn_if_larger_than_dense

# types whose largest number is below this overflow in practice: float16
_WIDE_RANGE = 1e30


class SKLinear(kernels.PackedStorage):
    """A linear layer whose weight is a sum of sketched low-rank terms; replaces ``nn.Linear``.

    y = 1/(2L) · Σ_i ( x · S1s[i] · U1s[i] + x · U2s[i] · S2s[i] ) + bias, with L = num_terms and k = low_rank
    (Kasiviswanathan, Narodytska, Jin, IJCAI 2018). The names, shapes and state_dict keys are those of the public
    ``panther-ml`` package.

    Args:
        in_features: d_in, size of the last axis of the input.
        out_features: d_out, size of the last axis of the output.
        num_terms: L, the number of terms of each kind.
        low_rank: k, the columns of each S1s[i]; the weight has a rank of at most 2Lk.
        W_init: (out_features, in_features), the weight of an ``nn.Linear``: S becomes the best approximation of it that
            the drawn U allow, in the Frobenius norm. When None, S is drawn at random, so that the output has the mean
            and the standard deviation of a fresh ``nn.Linear``'s.
        bias: whether to learn an additive bias.
        dtype: floating-point type of the parameters; torch's default when None.
        device: of the parameters; torch's default when None.
        sketch: the distribution of U: ``"sign"``, ``"gaussian"`` or ``"orthonormal"`` (`panther.sketch`).
        generator: of U and the initial S and bias; torch's global one when None.

    Attributes:
        S1s: (L, d_in, k), Parameter.
        U1s: (L, k, d_out), buffer, fixed; ±1/√k when sketch is "sign".
        U2s: (L, d_in, k), buffer, fixed, of the same kind.
        S2s: (L, k, d_out), Parameter.
        bias: (d_out,), Parameter or None.
        sketch: the distribution of U; a loaded checkpoint may hold another U.

    Raises:
        ValueError: a size is below 1, sketch is unknown, or W_init has the wrong shape or values that are not finite.
        TypeError: an argument is of the wrong type.

    Warns:
        UserWarning: the layer stores more weights than the dense one, 2Lk(d_in + d_out) > d_in·d_out.

    >>> layer = SKLinear(784, 512, num_terms=2, low_rank=64)
    >>> layer(torch.zeros(32, 784)).shape
    torch.Size([32, 512])
    """

    # warnings of the public package, under its names. Ours contains the first one; the others are about sizes and
    # batches that its tensor-core kernels don't take, and are never given here
    WARNING_MSG_FC = LARGER_THAN_DENSE
    WARNING_MSG_TC = "no tensor cores for in_features {}, out_features {} and low_rank {}: not all multiples of 16"
    WARNING_MSG_BATCH = "no tensor cores for a batch of {} rows: not a multiple of 16"

    __constants__ = ("in_features", "low_rank", "num_terms", "out_features")

    def __init__(
        self,
        in_features: int,
        out_features: int,
        num_terms: int,
        low_rank: int,
        W_init: Tensor | None = None,
        bias: bool = True,
        dtype: torch.dtype | None = None,
        device: torch.device | str | int | None = None,
        *,
        sketch: Sketch = "sign",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        check_sizes(in_features=in_features, out_features=out_features, num_terms=num_terms, low_rank=low_rank)
        check_options(bias=bias, dtype=dtype, sketch=sketch, generator=generator)
        if W_init is not None:
            check_weight(W_init, in_features, out_features)
        warn_if_larger_than_dense(in_features, out_features, num_terms, low_rank)
        self.in_features = in_features
        self.out_features = out_features
        self.num_terms = num_terms
        self.low_rank = low_rank
        self.sketch: str = sketch

        L, k = num_terms, low_rank
        self.S1s = nn.Parameter(torch.empty(L, in_features, k, dtype=dtype, device=device))
        self.S2s = nn.Parameter(torch.empty(L, k, out_features, dtype=dtype, device=device))
        if bias:
            self.bias = nn.Parameter(torch.empty(out_features, dtype=dtype, device=device))
        else:
            self.register_parameter("bias", None)
        self.register_buffer("U1s", torch.empty_like(self.S2s, requires_grad=False))
        self.register_buffer("U2s", torch.empty_like(self.S1s, requires_grad=False))
        self._kernel = kernels.kernel_of(in_features, out_features, num_terms, low_rank)
        self._pack()
        self._sketch_drawn = False
        self.reset_parameters(generator)
        if W_init is not None:
            self._approximate(W_init)

    @classmethod
    def from_linear(cls, linear: nn.Linear, num_terms: int, low_rank: int) -> SKLinear:
        """Make the sketched layer that is closest to a trained nn.Linear: the truncated SVD of rank 2Lk of its weight.

        U is fixed to leading singular directions, of the input for one half of the rank and of the output for the
        other, and S is solved, so that no other choice of the four matrices comes closer in the Frobenius norm (Eckart
        and Young, 1936). `panther.sketch_` converts whole models, and fits layers to data.

        Args:
            linear: source of sizes, bias, dtype, device, training mode and requires_grad; it is not changed.
            num_terms: L.
            low_rank: k.

        Raises:
            TypeError: linear is not an nn.Linear.
            ValueError: a size is below 1, or the weight holds values that are not finite or is on ``meta``.
        """
        if not isinstance(linear, nn.Linear):
            raise TypeError(f"linear ({type(linear).__name__}) must be an nn.Linear")
        check_sizes(num_terms=num_terms, low_rank=low_rank)
        W = linear.weight.detach()
        if W.is_meta:
            raise ValueError("the weight of linear is on the device 'meta' and has no values; load it first")
        check_weight(W, linear.in_features, linear.out_features)
        svd = truncated_svd(W.t(), 2 * num_terms * low_rank)
        layer = cls.from_factors(svd.U, svd.S.unsqueeze(1) * svd.Vh, linear.bias, num_terms, low_rank, dtype=W.dtype)
        layer.S1s.requires_grad_(linear.weight.requires_grad)
        layer.S2s.requires_grad_(linear.weight.requires_grad)
        if layer.bias is not None:
            layer.bias.requires_grad_(linear.bias.requires_grad)
        return layer.train(linear.training)

    @classmethod
    def from_factors(
        cls,
        left: Tensor,
        right: Tensor,
        bias: Tensor | None,
        num_terms: int,
        low_rank: int,
        *,
        dtype: torch.dtype | None = None,
        largest_input: Tensor | None = None,
    ) -> SKLinear:
        """Make the layer y = x @ left @ right + bias, on the device of left.

        Args:
            left: (in_features, r), r at most 2·num_terms·low_rank.
            right: (r, out_features).
            bias: (out_features,) or None; is copied.
            num_terms: L.
            low_rank: k.
            dtype: of the layer; left's when None. In float16 the terms are scaled to keep them and x @ A in its range.
            largest_input: (in_features,), the largest magnitudes of x that are known, for this scaling.

        Raises:
            ValueError: the shapes don't fit, or a size is below 1.
        """
        if left.dim() != 2 or right.dim() != 2 or left.shape[1] != right.shape[0]:
            raise ValueError(
                f"left {tuple(left.shape)} and right {tuple(right.shape)} must be (d_in, r) and (r, d_out)"
            )
        if left.shape[1] > 2 * num_terms * low_rank:
            raise ValueError(
                f"{left.shape[1]} columns of left are more than 2·num_terms·low_rank ({2 * num_terms * low_rank})"
            )
        dtype = dtype if dtype is not None else left.dtype
        sizes = (left.shape[0], right.shape[1], num_terms, low_rank)
        layer = SKLinear(*sizes, bias=bias is not None, dtype=dtype, device="meta", sketch="orthonormal")
        layer.to_empty(device=left.device)
        with torch.no_grad():
            largest = torch.finfo(dtype).max if torch.finfo(dtype).max < _WIDE_RANGE else None
            terms = terms_of_factors(left, right, num_terms, low_rank, largest=largest, largest_input=largest_input)
            for name, term in terms._asdict().items():
                getattr(layer, name).copy_(term)
            if bias is not None and layer.bias is not None:
                layer.bias.copy_(bias)
        layer._sketch_drawn = True
        return layer

    def tie_to(self, other: SKLinear) -> None:
        """Share the four terms of another layer of the same sizes; the bias stays this layer's.

        Raises:
            ValueError: the sizes differ.
        """
        sizes = (self.in_features, self.out_features, self.num_terms, self.low_rank)
        others = (other.in_features, other.out_features, other.num_terms, other.low_rank)
        if sizes != others:
            raise ValueError(
                f"(in_features, out_features, num_terms, low_rank) {sizes} must be those of the other layer, {others}"
            )
        self._share_terms(other)
        self.sketch, self._sketch_drawn = other.sketch, other._sketch_drawn

    @property
    def weight(self) -> Tensor:
        """`dense_weight`, for modules that read the weight instead of calling the layer; computed at each access."""
        return self.dense_weight()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw S1s, S2s and bias again; U is drawn only if it has no values yet (a layer made on ``meta``).

        An entry of S·U or U·S has the variance σ² of an entry of S, and the 2L terms are divided by 2L, so an entry of
        the whole weight has the variance σ²/(2L). A fresh nn.Linear has 1/(3·d_in): S uniform within ±√(2L/d_in).
        """
        if not self._sketch_drawn and not self.S1s.is_meta:
            self._draw_sketch(generator)
        S_bound = math.sqrt(2 * self.num_terms / self.in_features)
        bias_bound = 1 / math.sqrt(self.in_features)
        with torch.no_grad():
            for S in (self.S1s, self.S2s):
                uniform_(S, S_bound, generator)
            if self.bias is not None:
                uniform_(self.bias, bias_bound, generator)

    @kernels.compile_callees_only
    def forward(self, x: Tensor) -> Tensor:
        """Map x of shape (..., in_features) to y = (x @ A) @ B / (2L) + bias of shape (..., out_features).

        Raises:
            ValueError: the last axis of x has another size.
        """
        if isinstance(x, Tensor) and (x.dim() == 0 or x.shape[-1] != self.in_features):
            raise ValueError(
                f"x of shape {tuple(x.shape)} does not end in in_features ({self.in_features}): "
                f"its last axis has {x.shape[-1] if x.dim() else 'no'} entries"
            )
        # kernels.dispatch.sketched_linear, with a separate code object for each layer size; see kernel_of there
        return self._kernel(x, self)

    def factors(self) -> tuple[Tensor, Tensor]:
        """A (d_in, 2Lk) and B (2Lk, d_out) of y = (x @ A) @ B / (2L) + bias."""
        return functional.factors(self.S1s, self.U1s, self.U2s, self.S2s)

    def dense_weight(self) -> Tensor:
        """The weight W of the nn.Linear that computes the same, (out_features, in_features); gradients flow through."""
        A, B = self.factors()
        return (A @ B / (2 * self.num_terms)).t()

    def to_linear(self) -> nn.Linear:
        """A new nn.Linear that computes the same, of the same dtype, device and training mode."""
        linear = nn.Linear(
            self.in_features, self.out_features, bias=self.bias is not None, dtype=self.S1s.dtype, device="meta"
        )
        linear.weight = nn.Parameter(self.dense_weight().detach().contiguous())
        if self.bias is not None:
            linear.bias = nn.Parameter(self.bias.detach().clone())
        return linear.train(self.training)

    def parameter_count(self) -> ParameterCount:
        """Dense, learnable and fixed parameters of this layer."""
        return count_parameters(
            self.in_features, self.out_features, self.num_terms, self.low_rank, bias=self.bias is not None
        )

    def extra_repr(self) -> str:
        """The sizes, as in the repr of nn.Linear."""
        sketch = "" if self.sketch == "sign" else f", sketch={self.sketch!r}"
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"num_terms={self.num_terms}, low_rank={self.low_rank}, bias={self.bias is not None}{sketch}"
        )

    def _loaded(self) -> None:
        """Finish loading after a loader has set parameters and buffers one by one."""
        self._sketch_drawn = True
        self._pack()

    def _draw_sketch(self, generator: torch.Generator | None) -> None:
        """Put new matrices into U1s and U2s."""
        for U, features in ((self.U1s.transpose(1, 2), self.out_features), (self.U2s, self.in_features)):
            drawn = draw_sketches(
                self.sketch,  # type: ignore[arg-type]
                features,
                self.num_terms,
                self.low_rank,
                generator=generator,
                dtype=U.dtype,
                device=U.device,
            )
            U.copy_(drawn)
        self._sketch_drawn = True

    def _approximate(self, W: Tensor) -> None:
        """Make S1s and S2s the best for W, (out_features, in_features), that U allows."""
        if self.S1s.is_meta:
            return
        S1s, S2s = best_terms(W.detach().to(self.S1s.device), self.U1s, self.U2s)
        with torch.no_grad():
            self.S1s.copy_(S1s)
            self.S2s.copy_(S2s)

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        self._sketch_drawn |= f"{prefix}U1s" in state_dict and f"{prefix}U2s" in state_dict
