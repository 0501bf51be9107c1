"""A sketched layer that grows during training and keeps its learned function."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from panther.linalg.sign_bits import sign_magnitude
from panther.linalg.sketch import Sketch
from panther.nn.linear import SKLinear


class ProgressiveSKLinear(nn.Module):
    """A sketched layer of growing complexity: starts small, doubles on request, computes the same before and after.

    Args:
        in_features: d_in.
        out_features: d_out.
        initial_terms, max_terms: the number of terms at the start and at most.
        initial_rank, max_rank: low_rank at the start and at most.
        bias, dtype, device, sketch, generator: as for `SKLinear`.

    Attributes:
        current_layer: the current `SKLinear`, to export; a new object after each growth.

    Raises:
        ValueError: a maximum is below its start, or an argument is wrong for `SKLinear`.

    >>> layer = ProgressiveSKLinear(1024, 1024, initial_terms=1, max_terms=2, initial_rank=16, max_rank=32)
    >>> x = torch.randn(8, 1024)
    >>> before = layer(x)
    >>> layer.increase_complexity(), layer.current_layer.num_terms, layer.current_layer.low_rank
    (True, 2, 32)
    >>> torch.allclose(layer(x), before, atol=1e-5)
    True
    >>> layer.increase_complexity()
    False
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        initial_terms: int = 2,
        max_terms: int = 16,
        initial_rank: int = 16,
        max_rank: int = 128,
        *,
        bias: bool = True,
        dtype: torch.dtype | None = None,
        device: torch.device | str | int | None = None,
        sketch: Sketch = "sign",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.current_layer = SKLinear(
            in_features,
            out_features,
            initial_terms,
            initial_rank,
            bias=bias,
            dtype=dtype,
            device=device,
            sketch=sketch,
            generator=generator,
        )
        for name, start, most in (("terms", initial_terms, max_terms), ("rank", initial_rank, max_rank)):
            if isinstance(most, bool) or not isinstance(most, int):
                raise TypeError(f"max_{name} ({most!r}) must be an integer, not {type(most).__name__}")
            if most < start:
                raise ValueError(f"max_{name} ({most}) must be at least initial_{name} ({start})")
        self.in_features = in_features
        self.out_features = out_features
        self.max_terms = max_terms
        self.max_rank = max_rank

    def increase_complexity(
        self, optimizer: torch.optim.Optimizer | None = None, *, generator: torch.Generator | None = None
    ) -> bool:
        """Double num_terms and low_rank, each up to its maximum; the layer computes the same as before.

        The grown layer's S1s and S2s are new parameters; the bias stays the same one. Pass the existing optimizer here:
        the new parameters replace the old ones, in the same group with the same options and no history of steps. Or
        create a new optimizer afterwards. A DistributedDataParallel wrapper must be created again.

        Args:
            optimizer: holds the old parameters.
            generator: of the new part of U; torch's global one when None.

        Returns:
            Whether it grew; False at its maximum.

        Raises:
            ValueError: optimizer does not have the old parameters; nothing has grown.
        """
        old = self.current_layer
        num_terms = min(2 * old.num_terms, self.max_terms)
        low_rank = min(2 * old.low_rank, self.max_rank)
        if (num_terms, low_rank) == (old.num_terms, old.low_rank):
            return False
        places = [] if optimizer is None else _places(optimizer, old)
        new = grow(old, num_terms, low_rank, generator=generator)
        for parameters, i, name in places:
            parameters[i] = getattr(new, name)
        if optimizer is not None:
            for name in ("S1s", "S2s"):
                optimizer.state.pop(getattr(old, name), None)
        self.current_layer = new
        return True

    def forward(self, x: Tensor) -> Tensor:
        """Map x of shape (..., in_features) to (..., out_features)."""
        return self.current_layer(x)  # type: ignore[no-any-return]

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        """Grow to the checkpoint's complexity first, so that a grown layer loads into a new one."""
        sizes = self.sizes_in(state_dict, prefix)
        if sizes is not None and sizes != (self.current_layer.num_terms, self.current_layer.low_rank):
            self.current_layer = _resized(self.current_layer, *sizes)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def sizes_in(self, state_dict: Mapping[str, Any], prefix: str = "") -> tuple[int, int] | None:
        """The (num_terms, low_rank) of this layer in a state_dict; None if they are missing or over the maximum."""
        S1s = state_dict.get(f"{prefix}current_layer.S1s")
        if not isinstance(S1s, Tensor) or S1s.dim() != 3 or S1s.shape[1] != self.in_features:
            return None
        num_terms, _, low_rank = S1s.shape
        within = 1 <= num_terms <= self.max_terms and 1 <= low_rank <= self.max_rank
        return (num_terms, low_rank) if within else None


def grow(layer: SKLinear, num_terms: int, low_rank: int, *, generator: torch.Generator | None = None) -> SKLinear:
    """Make a larger layer that computes the same.

    The old U are a corner of the new ones, scaled from 1/√k to 1/√k'; the old S, scaled the other way and by L'/L, are
    a corner of the new ones, and the rest of S is zero. So the sum over terms is the old one times L'/L, which the
    factor 1/(2L') takes back; and the gradient for the new part of S is not zero, since the U beside it isn't.

    Args:
        layer: is not changed; the new layer shares its bias.
        num_terms, low_rank: L' and k', not below the layer's.
        generator: of the new part of U; torch's global one when None.
    """
    L, k = layer.num_terms, layer.low_rank
    if num_terms < L or low_rank < k:
        raise ValueError(f"num_terms and low_rank ({num_terms}, {low_rank}) must not be below the layer's ({L}, {k})")
    new = _resized(layer, num_terms, low_rank, generator=generator)
    U_scale = math.sqrt(k / low_rank)
    S_scale = num_terms / L / U_scale
    with torch.no_grad():
        new.S1s.zero_()
        new.S2s.zero_()
        new.S1s[:L, :, :k] = layer.S1s * S_scale
        new.S2s[:L, :k, :] = layer.S2s * S_scale
        for U_new, U_old in ((new.U1s[:L, :k, :], layer.U1s), (new.U2s[:L, :, :k], layer.U2s)):
            c = sign_magnitude(new.U1s) if layer.sketch == "sign" and sign_magnitude(U_old) is not None else None
            U_new.copy_(U_old * U_scale if c is None else torch.where(U_old > 0, c, -c))
    for name in ("S1s", "S2s"):
        getattr(new, name).requires_grad_(getattr(layer, name).requires_grad)
    return new


def _resized(layer: SKLinear, num_terms: int, low_rank: int, *, generator: torch.Generator | None = None) -> SKLinear:
    """A freshly drawn layer like this one, with its own bias, of another complexity."""
    new = SKLinear(
        layer.in_features,
        layer.out_features,
        num_terms,
        low_rank,
        bias=layer.bias is not None,
        dtype=layer.S1s.dtype,
        device=layer.S1s.device,
        sketch=layer.sketch,  # type: ignore[arg-type]
        generator=generator,
    ).train(layer.training)
    new.bias = layer.bias
    return new


def _places(optimizer: torch.optim.Optimizer, layer: SKLinear) -> list[tuple[list[nn.Parameter], int, str]]:
    """Positions of S1s and S2s in an optimizer: the list of a group, the index in it, the name."""
    places = []
    for name in ("S1s", "S2s"):
        found = [
            (group["params"], i, name)
            for group in optimizer.param_groups
            for i, parameter in enumerate(group["params"])
            if parameter is getattr(layer, name)
        ]
        if not found:
            raise ValueError(f"the optimizer does not have the {name} of this layer; give the optimizer that trains it")
        places += found
    return places
