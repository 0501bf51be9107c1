"""Memory of a conversion by layer, in bytes, and the groups of layers that fit together.

See docs/decisions/0084-calibration-in-groups.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from panther.convert.allocate import possible_ranks
from panther.convert.embeddings import is_embedding
from panther.convert.fast_path import observing
from panther.convert.forward import Forward, outputs_of, run
from panther.convert.layers import Unit
from panther.convert.moments import sensitivity_entries
from panther.convert.statistics import WIDER

_DOUBLE = 8
# entries of a weight in float64 at a time, with a product of as many
_BLOCKS = 2 * 2**24


@dataclass(frozen=True)
class Sizes:
    """Bytes of a layer.

    Attributes:
        inputs: statistics of its inputs, which layers that read the same tensor share.
        others: its other statistics.
        work: while it is taken apart.
        kept: of its factors, to the end.
    """

    inputs: int
    others: int
    work: int
    kept: int


Sizing = Callable[[Unit], Sizes]


def sizes_of(unit: Unit, probes: int) -> Sizes:
    """Memory of a conversion for one layer, in bytes."""
    d_in, d_out = unit.in_features, unit.out_features
    small = min(d_in, d_out)
    if is_embedding(unit.places[0].module):
        moments = moment_bytes(unit, probes)
        return Sizes(0, moments, 3 * moments, _DOUBLE * d_out**2)
    if unit.takes_moments:
        # keeps its covariances, damped and undamped, for the option that cuts the input channels
        moments = moment_bytes(unit, probes)
        return Sizes(0, moments, 3 * moments, 3 * moments + _DOUBLE * small * (d_in + d_out))
    wide, tall = d_in >= WIDER * d_out, d_out >= WIDER * d_in
    inputs = 0 if wide else d_in**2
    others = (d_out**2 if wide else 0) + (0 if not probes else d_in**2 if tall else d_out**2)
    rank = max(possible_ranks(d_in, d_out), default=0)
    kept = rank * (d_in + d_out + (small if wide or tall else 0)) * (_DOUBLE if unit.element_bytes == _DOUBLE else 4)
    work = inputs + 6 * small**2 + min(unit.weights, _BLOCKS) + rank * (d_in + d_out)
    return Sizes(_DOUBLE * inputs, _DOUBLE * others, _DOUBLE * work, kept)


def moment_bytes(unit: Unit, probes: int) -> int:
    """Bytes of the full moments of a layer."""
    d_in, d_out = unit.in_features, unit.out_features
    if is_embedding(unit.places[0].module):
        # a count for each row, and moments of its outputs and of the inputs of heads
        return _DOUBLE * (d_in + (4 if unit.heads else 2) * d_out**2)
    return _DOUBLE * (d_in**2 + (sensitivity_entries(d_out) if probes else 0))


@dataclass
class Survey:
    """The calls of layers in one forward pass.

    Attributes:
        units: in the order of their first calls; those that were not called at the end.
        reads: by the id of a unit, which tensors it reads: units with equal ones see the same rows.
        moving: for every output of the model whether a unit moves it.
    """

    units: list[Unit] = field(default_factory=list)
    reads: dict[int, tuple[tuple[int, int], ...]] = field(default_factory=dict)
    moving: list[bool] = field(default_factory=list)

    def readers(self) -> list[list[Unit]]:
        """The units, those that read the same tensors together."""
        found: dict[tuple[tuple[int, int], ...], list[Unit]] = {}
        alone = [[unit] for unit in self.units if id(unit) not in self.reads]
        for unit in self.units:
            if id(unit) in self.reads:
                found.setdefault(self.reads[id(unit)], []).append(unit)
        return [*found.values(), *alone]


def survey(
    model: nn.Module, units: Sequence[Unit], batch: Any, forward: Forward | None, *, derivatives: bool
) -> Survey:
    """Run a batch through the model and watch the calls of the units.

    Args:
        model: in eval mode and frozen.
        units: whose modules are watched.
        batch, forward: as `panther.convert.forward.call` takes them.
        derivatives: whether outputs are examined for derivatives.
    """
    found, alive = Survey(), list[Tensor]()
    reads: dict[int, list[tuple[int, int]]] = {}

    def hook(unit: Unit) -> Callable[..., Tensor]:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> Tensor:
            x: Tensor = args[0] if args else next(iter(kwargs.values()))
            # kept alive, so that no other tensor gets its identity
            alive.append(x)
            if id(unit) not in reads:
                found.units.append(unit)
            reads.setdefault(id(unit), []).append((id(x), x._version))
            return out + torch.zeros((), device=out.device, dtype=out.dtype, requires_grad=True) if derivatives else out

        return hook

    handles = [
        place.module.register_forward_hook(hook(unit), with_kwargs=True) for unit in units for place in unit.places
    ]
    try:
        with torch.set_grad_enabled(derivatives), observing(model):
            outputs = outputs_of(run(model, batch, forward, "calibration: batch 0"), batch)
    finally:
        for handle in handles:
            handle.remove()
    found.moving = [y.requires_grad for y, _ in outputs]
    found.reads = {key: tuple(calls) for key, calls in reads.items()}
    found.units += [unit for unit in units if id(unit) not in reads]
    return found


def split(surveyed: Survey, room: Mapping[torch.device, float], sizing: Sizing) -> list[list[Unit]]:
    """Groups of layers in call order, as large as fit; a layer that does not fit is a separate group."""
    groups: list[list[Unit]] = []
    for unit in surveyed.units:
        if groups and fits([*groups[-1], unit], room, sizing, surveyed):
            groups[-1].append(unit)
        else:
            groups.append([unit])
    return groups


def fits(
    units: Sequence[Unit], room: Mapping[torch.device, float], sizing: Sizing, surveyed: Survey | None = None
) -> bool:
    """Whether the statistics of some layers, and the work on the largest of them, fit on every device.

    Args:
        units: the layers.
        room: bytes by device.
        sizing: memory of a layer.
        surveyed: which layers share those of inputs; none do without.
    """
    return all(bytes_on(device, units, sizing, surveyed) <= most for device, most in room.items())


def bytes_on(device: torch.device, units: Sequence[Unit], sizing: Sizing, surveyed: Survey | None = None) -> int:
    """Bytes of the statistics of some layers, and of the work on the largest of them."""
    statistics = work = 0
    counted = set[tuple[int, ...]]()
    for unit in units:
        if unit.device != device:
            continue
        sizes = sizing(unit)
        reads = surveyed.reads.get(id(unit), ()) if surveyed is not None else ()
        key = hash((reads, unit.in_features)), unit.in_features
        statistics += sizes.others + (0 if reads and key in counted else sizes.inputs)
        if sizes.inputs:
            counted.add(key)
        work = max(work, sizes.work)
    return statistics + work
