"""Full moments of layers in bounded memory, for conversions that round weights: `compress` and `quantize_`.

See docs/decisions/0100-moments-in-bounded-memory.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from panther.convert.forward import Forward
from panther.convert.groups import Step, passes
from panther.convert.layers import Unit
from panther.convert.memory import allowed
from panther.convert.moments import KeptMoments, Moments, sensitivity_entries
from panther.convert.spill import Keeper
from panther.convert.survey import Sizes, moment_bytes, split, survey


@dataclass(frozen=True)
class Needs:
    """Memory of a conversion besides moments, in bytes.

    Attributes:
        kept: of what is kept for a layer until the layers are chosen.
        work: while the layers that read one tensor are decomposed and rounded.
    """

    kept: Callable[[Unit], int]
    work: Callable[[Sequence[Unit]], int]


@dataclass(frozen=True)
class Collected:
    """Moments of the layers of a model.

    Attributes:
        moments: by the id of a unit; a matrix is loaded when it is read.
        keeper: stores them, and what is derived from them.
        on_batch: reports a batch of the pass that the caller makes.
        notes: for the report, where they are in temporary files.
    """

    moments: Mapping[int, Moments]
    keeper: Keeper
    on_batch: Callable[[], None]
    notes: tuple[str, ...] = ()


def collect_within(
    model: nn.Module,
    units: Sequence[Unit],
    batches: Sequence[Any],
    forward: Forward | None,
    *,
    probes: int,
    generator: torch.Generator,
    memory: int | None,
    needs: Needs,
    step: Step,
) -> Collected:
    """Collect the full moments of all layers, in as many passes over the inputs as the memory requires.

    If moments, what else is kept and the work on the largest layer don't fit together, they are stored in temporary
    files (in CPU memory for an accelerator), and each pass collects the moments of as many layers as fit.

    Args:
        model: in eval mode and frozen.
        units: that are watched.
        batches, forward, probes, generator: as `panther.convert.calibration.collect` takes them.
        memory: bytes on each device; None for half of what is free.
        needs: memory besides the moments.
        step: called with (what, done, all); all has one more pass, which the caller makes.

    Raises:
        ValueError: the memory that the caller gave is too small for a layer.
        ConversionError: the inputs of a layer hold values that are not finite, or the disk is full.
    """
    room = {device: allowed(device, memory) for device in {unit.device for unit in units}}
    groups: Sequence[Sequence[Unit]] = [units]
    moving: Sequence[bool] | None = None
    notes, spilled = tuple[str, ...](), False
    if not _fit(units, _alike(units), room, probes, needs):
        surveyed = survey(model, units, batches[0], forward, derivatives=probes > 0)
        spilled = not _fit(units, surveyed.readers(), room, probes, needs)
        if spilled:
            if memory is not None:
                _check(surveyed.readers(), memory, probes, needs)
            groups, moving = split(surveyed, room, lambda unit: _sizes(unit, probes)), surveyed.moving
    keeper, found, total = Keeper(spilled=spilled), dict[int, Moments](), (len(groups) + 1) * len(batches)
    calls = iter(range(1, total + 1))

    def on_batch() -> None:
        step("calibrating", next(calls), total)

    for group, sums in passes(
        model,
        groups,
        batches,
        forward,
        probes=probes,
        generator=generator,
        moving=moving,
        on_batch=on_batch,
        full=True,
    ):
        for unit in group:
            moments = sums.pop(id(unit))
            if not isinstance(moments, Moments):
                raise TypeError(f"{type(moments).__name__} are not moments")
            found[id(unit)] = KeptMoments(moments, keeper)
    if spilled:
        size = sum(moment_bytes(unit, probes) + needs.kept(unit) for unit in units)
        notes = (
            f"calibrated in {len(groups)} passes over the inputs, at most {max(map(len, groups))} of {len(units)} "
            f"layers in each; {size / 1e6:,.1f} MB of moments and factors were kept off the device, or on the disk "
            "beside a CPU",
        )
    return Collected(found, keeper, on_batch, notes)


def _alike(units: Sequence[Unit]) -> list[list[Unit]]:
    """Layers that might read the same tensor, by the width of their inputs."""
    found: dict[int, list[Unit]] = {}
    for unit in units:
        found.setdefault(unit.in_features, []).append(unit)
    return list(found.values())


def _fit(
    units: Sequence[Unit],
    readers: Sequence[Sequence[Unit]],
    room: Mapping[torch.device, float],
    probes: int,
    needs: Needs,
) -> bool:
    """Whether everything fits on every device at once."""
    for device, most in room.items():
        kept = sum(moment_bytes(unit, probes) + needs.kept(unit) for unit in units if unit.device == device)
        work = max((needs.work(group) for group in readers if group[0].device == device), default=0)
        if kept + work > most:
            return False
    return True


def _sizes(unit: Unit, probes: int) -> Sizes:
    """Memory of a pass: the moments, and the product of derivatives that is added to them."""
    return Sizes(0, moment_bytes(unit, probes), 12 * sensitivity_entries(unit.out_features) if probes else 0, 0)


def _check(readers: Sequence[Sequence[Unit]], memory: int, probes: int, needs: Needs) -> None:
    """Refuse a memory in which a layer can't be collected or worked on.

    Raises:
        ValueError: it is too small; the message has the least that is needed.
    """
    sizes = {id(unit): _sizes(unit, probes) for group in readers for unit in group}
    found = [
        (max(needs.work(group), *(sizes[id(unit)].others + sizes[id(unit)].work for unit in group)), group)
        for group in readers
    ]
    least, largest = max(found, key=lambda entry: entry[0])
    if least > memory:
        names = ", ".join(unit.name for unit in largest[:3])
        raise ValueError(
            f"memory ({memory:,} bytes) is too small for {names}: its moments and the work on them take about "
            f"{least:,} bytes; give at least that, or leave memory out"
        )
