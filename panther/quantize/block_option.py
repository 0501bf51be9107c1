"""A layer in blocks of few bits as an option of a plan."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

from torch import nn

from panther.convert.layers import Place, Unit, bias_of
from panther.convert.moments import Moments
from panther.nn.hooks import take_hooks
from panther.quantize.blocks import Blocks, Known, Made, estimate, quantize_weight, with_bias
from panther.quantize.candidates import sensitivity, usable
from panther.quantize.observe import Observed
from panther.quantize.sketched import FactorOption, SketchedUnit, has_signs
from panther.quantize.terms import TermOption


@dataclass(frozen=True)
class BlockOption:
    """A unit in blocks.

    Attributes:
        unit: the layer.
        blocks: the format.
        read: computes its calibration statistics from the kept moments.
    """

    unit: Unit
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
        d_out, d_in = self.unit.weight.shape
        parts = [f"blocks of {self.blocks.size(d_in)}"]
        if rank := self.blocks.rank(d_out, d_in):
            parts.append(f"correction of rank {rank}")
        return ", ".join(parts)

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weight, its scales, zero points and correction."""
        return self.blocks.weight_bytes(self.unit.out_features, self.unit.in_features)

    @cached_property
    def estimate(self) -> float:
        """Error of rounding to the nearest."""
        return estimate(self.unit.weight, self.blocks, self.read())

    @property
    def error(self) -> float:
        """Error of the finished layer."""
        return self._made.error

    @cached_property
    def _made(self) -> Made:
        return quantize_weight(self.unit.weight, self.blocks, self.read())

    def layers(self, *, final: bool) -> list[tuple[Place, nn.Module]]:  # noqa: ARG002
        """One layer for each module of the unit; they share their weight."""
        W, known, found = self.unit.weight, self.read(), list[tuple[Place, nn.Module]]()
        for place in self.unit.places:
            layer = with_bias(self._made.layer, W, known, bias_of(place.module))
            take_hooks(layer, place.module)
            found.append((place, layer.train(place.module.training)))
        return found


def block_options(
    units: Sequence[Unit],
    moments: Mapping[int, Moments],
    seen: Observed,
    ladder: Sequence[Blocks],
) -> list[tuple[BlockOption, ...] | tuple[FactorOption, ...] | tuple[TermOption, ...]]:
    """Options of each unit that can be quantized, in the order of the ladder; the others get their reason."""
    result = list[tuple[BlockOption, ...] | tuple[FactorOption, ...] | tuple[TermOption, ...]]()
    for unit in usable(units, moments, seen):
        read = partial(known_of, unit, moments[id(unit)], seen)
        if isinstance(unit, SketchedUnit) and has_signs(unit.layer):
            result.append(tuple(TermOption(unit, read, blocks.bits) for blocks in ladder))
        elif isinstance(unit, SketchedUnit):
            result.append(tuple(FactorOption(unit, blocks, read) for blocks in ladder))
        else:
            result.append(tuple(BlockOption(unit, blocks, read) for blocks in ladder))
    return result


def known_of(unit: Unit, moments: Moments, seen: Observed) -> Known:
    """The calibration statistics of a layer."""
    second = moments.covariance(centred=False)
    G = sensitivity(moments, unit.weight.double(), second, seen.examples)
    return Known(second, G, moments.mean, seen.rows[id(unit)])
