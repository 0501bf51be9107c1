"""Sketched layers with learned factors, which can be stored in few bits like dense ones."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from panther.convert.layers import Filter, Place, Unit, bias_of
from panther.linalg.sign_bits import sign_magnitude
from panther.nn import SKLinear
from panther.nn.hooks import take_hooks
from panther.quantize.blocks import Blocks, Known, MadeFactors
from panther.quantize.factors import factor_bytes, quantize_factors


@dataclass
class SketchedUnit(Unit):
    """A sketched layer as a unit: its weight is the product of its factors, its bytes are those of the factors."""

    @property
    def layer(self) -> SKLinear:
        """The module."""
        module = self.places[0].module
        if not isinstance(module, SKLinear):
            raise TypeError(f"{self.name} ({type(module).__name__}) is not an SKLinear")
        return module

    @property
    def factors(self) -> tuple[Tensor, Tensor]:
        """(d_in, rank) and (rank, d_out), whose product is the transposed weight."""
        A, B = self.layer.factors()
        return A.detach(), B.detach() / (2 * self.layer.num_terms)

    @property
    def weight(self) -> Tensor:
        """(out_features, in_features)."""
        left, right = self.factors
        return (left @ right).t()

    @property
    def device(self) -> torch.device:
        """Device of the factors."""
        return self.layer.S1s.device

    @property
    def weights(self) -> int:
        """Entries of both factors."""
        return sum(factor.numel() for factor in self.factors)

    @property
    def element_bytes(self) -> int:
        """Bytes of an entry of a factor."""
        return self.layer.S1s.element_size()


def find_sketched(model: nn.Module, filter_fn: Filter | None, skip: Iterable[str]) -> list[SketchedUnit]:
    """The sketched layers of a model, with the reason if one can't be quantized.

    Args:
        model: is searched with all that it contains.
        filter_fn, skip: as of `find_units`.
    """
    patterns = [skip] if isinstance(skip, str) else list(skip)
    places: dict[int, Place] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        left_out = any(fnmatch.fnmatchcase(name, each) or name.startswith(f"{each}.") for each in patterns)
        if type(module) is SKLinear and name and not left_out and (filter_fn is None or filter_fn(module, name)):
            places.setdefault(id(module), Place(module, [])).names.append(name)
    units = [SketchedUnit([place]) for place in places.values()]
    holders: dict[int, int] = {}
    for parameter in (parameter for module in model.modules() for parameter in module._parameters.values()):
        holders[id(parameter)] = holders.get(id(parameter), 0) + 1
    for unit in units:
        unit.reason = _reason(unit.layer, holders)
    return units


def has_signs(layer: SKLinear) -> bool:
    """Whether a fixed matrix of a layer holds only ±c, stored at one bit an entry."""
    return any(sign_magnitude(U) is not None for U in (layer.U1s, layer.U2s))


def _reason(layer: SKLinear, holders: dict[int, int]) -> str | None:
    """Why a sketched layer is not quantized, or None."""
    if parametrize.is_parametrized(layer) or not {"S1s", "S2s"} <= layer._parameters.keys():
        return "its factors are computed from other parameters"
    if any(holders[id(term)] > 1 for term in (layer.S1s, layer.S2s)):
        return "it shares its factors with another layer"
    if has_signs(layer) and layer.S1s.dtype != torch.float32:
        return "its fixed matrices are signs, which take one bit an entry, beside terms in half precision"
    if not all(bool(factor.isfinite().all()) for factor in layer.factors()):
        return "its factors hold values that are not finite"
    return None


@dataclass(frozen=True)
class FactorOption:
    """A sketched layer with both factors in blocks.

    Attributes:
        unit: the layer.
        blocks: the format.
        read: computes its calibration statistics from the kept moments.
    """

    unit: SketchedUnit
    blocks: Blocks
    read: Callable[[], Known]

    @property
    def precision(self) -> str:
        """Name in reports."""
        return self.blocks.precision

    @property
    def alpha(self) -> float | None:
        """Smoothing strength: none."""
        return None

    @property
    def reason(self) -> str:
        """The format in words."""
        return f"factors of rank {self._rank} in blocks of {self.blocks.size(self.unit.in_features)}"

    @property
    def weight_bytes(self) -> int:
        """Bytes of both factors."""
        return factor_bytes(self.unit.out_features, self.unit.in_features, self._rank, self.blocks)

    @property
    def estimate(self) -> float:
        """Error of the finished layer."""
        return self._made.error

    @property
    def error(self) -> float:
        """Error of the finished layer."""
        return self._made.error

    @property
    def _rank(self) -> int:
        return 2 * self.unit.layer.num_terms * self.unit.layer.low_rank

    @cached_property
    def _made(self) -> MadeFactors:
        with torch.no_grad():
            return quantize_factors(*self.unit.factors, self.blocks, self.read(), bias_of(self.unit.layer))

    def layers(self, *, final: bool) -> list[tuple[Place, nn.Module]]:  # noqa: ARG002
        """The layer for its module."""
        (place,) = self.unit.places
        layer = self._made.layer
        take_hooks(layer, place.module)
        return [(place, layer.train(place.module.training))]
