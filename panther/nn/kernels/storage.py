"""`PackedStorage`: a module whose four terms stay packed side by side whenever their memory changes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Self

from torch import Tensor, nn

from panther.nn.kernels import packed
from panther.nn.kernels.dispatch import Kernel, kernel_of


class PackedStorage(nn.Module):
    """Base of a layer with the terms S1s, U1s, U2s and S2s, which it keeps side by side in memory.

    Every operation that moves the terms to other memory (loading, casting, moving to a device) packs them again.
    """

    in_features: int
    out_features: int
    num_terms: int
    low_rank: int
    S1s: nn.Parameter
    S2s: nn.Parameter
    U1s: Tensor
    bias: Any
    U2s: Tensor
    # None while the terms are not adjacent in memory
    _packed: packed.Packed | None = None
    # `kernel_of` the sizes; set by the constructor of the layer
    _kernel: Kernel

    # every layer that shares the terms of this one, itself included; a list, so that none becomes a submodule
    _ties: list[PackedStorage] | None = None

    def _share_terms(self, other: PackedStorage) -> None:
        """Share the Parameters and buffers of another layer, also after both were moved or cast."""
        self.S1s, self.S2s, self.U1s, self.U2s = other.S1s, other.S2s, other.U1s, other.U2s
        other._ties = self._ties = [*(other._ties or [other]), self]
        for tied in self._ties:
            tied._ties = self._ties
        self._pack()

    def _take_shared_buffers(self) -> None:
        """Take U from a tied layer that was moved before: nn.Module gives a shared buffer a copy in each module."""
        for tied in self._ties or ():
            U = tied._buffers.get("U1s")
            if (
                tied is not self
                and tied._parameters.get("S1s") is self._parameters.get("S1s")
                and U is not None
                and (U.dtype, U.device) == (self.U1s.dtype, self.U1s.device)
            ):
                self.U1s, self.U2s = tied.U1s, tied.U2s
                return

    def _pack(self) -> None:
        """Make the terms adjacent in memory, where they can be, and note their layout in `_packed`."""
        terms = [self._parameters.get("S1s"), self._buffers.get("U1s"), self._buffers.get("U2s")]
        terms.append(self._parameters.get("S2s"))
        # a parametrized or pruned layer keeps them elsewhere
        self._packed = None if any(term is None for term in terms) else packed.pack(*terms)  # type: ignore[arg-type]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move or cast the tensors, as torch does for `to`, `cuda` and `half`, and pack the terms again."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._take_shared_buffers()
        self._pack()
        return self

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        self._pack()

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if keep_vars or self._packed is None:
            return
        # the same memory as separate storages: checkpoint writers take two tensors of one storage as tied
        for name in ("S1s", "U1s", "U2s", "S2s"):
            destination[prefix + name] = packed.with_separate_storage(destination[prefix + name])

    def __getstate__(self) -> dict[str, Any]:
        # a closure can't be pickled
        return {key: value for key, value in self.__dict__.items() if key != "_kernel"} | {"_packed": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._kernel = kernel_of(self.in_features, self.out_features, self.num_terms, self.low_rank)
        self._pack()
