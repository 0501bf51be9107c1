"""Calibration in bounded memory: each group of layers gets a pass over the inputs and is decomposed before the next.

See docs/decisions/0084-calibration-in-groups.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn

from panther.convert import plan
from panther.convert.calibration import gather
from panther.convert.candidates import Candidate
from panther.convert.experts import pool_moments
from panther.convert.forward import Forward
from panther.convert.layers import Unit
from panther.convert.memory import allowed
from panther.convert.moments import Moments, Sums, empty_moments
from panther.convert.spill import Keeper
from panther.convert.statistics import InputPool
from panther.convert.survey import bytes_on, fits, sizes_of, split, survey

Step = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Seen:
    """Summary of a layer's calibration.

    Attributes:
        rows: that it saw.
        derivatives: whether its effect on the outputs is known.
    """

    rows: int
    derivatives: bool


@dataclass
class Calibration:
    """Layers decomposed after calibration.

    Attributes:
        candidates: in the order of the units.
        seen: by the id of a unit.
        notes: for the report, where it took more than one pass.
    """

    candidates: list[Candidate] = field(default_factory=list)
    seen: dict[int, Seen] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def calibrate(
    model: nn.Module,
    units: Sequence[Unit],
    batches: Sequence[Any],
    forward: Forward | None,
    *,
    probes: int,
    generator: torch.Generator,
    memory: int | None,
    step: Step,
) -> Calibration:
    """Calibrate the layers of a model and decompose them, in groups that fit into memory.

    Args:
        model: in eval mode and frozen.
        units: those without a reason are watched; those that can't be converted get one.
        batches, forward, probes, generator: as `panther.convert.calibration.collect` takes them. Every pass draws the
            same random directions.
        memory: bytes on each device for statistics, work and factors; None for half of what is free.
        step: called with (what, done, all).
    """
    active = [unit for unit in units if unit.reason is None]
    sizing = partial(sizes_of, probes=probes)
    room = {device: allowed(device, memory) for device in {unit.device for unit in active}}
    kept = {device: sum(sizing(unit).kept for unit in active if unit.device == device) for device in room}
    spilled = any(kept[device] > room[device] / 2 for device in room)
    if not spilled:
        room = {device: room[device] - kept[device] for device in room}
    groups: Sequence[Sequence[Unit]] = [active]
    moving, found = None, Calibration()
    if not fits(active, room, sizing):
        surveyed = survey(model, active, batches[0], forward, derivatives=probes > 0)
        groups, moving = split(surveyed, room, sizing), surveyed.moving
        most = max(bytes_on(device, group, sizing, surveyed) for group in groups for device in room)
        found.notes = _notes(groups, most, max(room.values()), kept=sum(kept.values()) if spilled else 0)
    elif spilled:
        found.notes = _notes(groups, 0, 0, kept=sum(kept.values()))
    keeper, zeros = Keeper(spilled=spilled), plan.zero_weights(active)
    calls, taken = iter(range(1, len(groups) * len(batches) + 1)), 0
    for group, sums in passes(
        model,
        groups,
        batches,
        forward,
        probes=probes,
        generator=generator,
        moving=moving,
        on_batch=lambda: step("calibrating", next(calls), len(groups) * len(batches)),
    ):
        pool_moments(model, group, {key: seen for key, seen in sums.items() if isinstance(seen, Moments)})
        for unit in group:
            # nothing else holds them: they are freed as soon as the layer is factored
            seen = sums.pop(id(unit))
            found.seen[id(unit)] = Seen(seen.rows, seen.sensitivity is not None)
            found.candidates += plan.ways(unit, seen, zeros, keeper)
            taken += 1
            step("factorizing", taken, len(active))
    order = {id(unit): number for number, unit in enumerate(units)}
    found.candidates.sort(key=lambda candidate: order[id(candidate.unit)])
    return found


def passes(
    model: nn.Module,
    groups: Sequence[Sequence[Unit]],
    batches: Sequence[Any],
    forward: Forward | None,
    *,
    probes: int,
    generator: torch.Generator,
    moving: Sequence[bool] | None,
    on_batch: Callable[[], None],
    full: bool = False,
) -> Iterator[tuple[Sequence[Unit], dict[int, Sums]]]:
    """Each group of layers with its sums by the id of a unit, after a pass over the inputs.

    Every pass draws the same random directions and patches. Nothing else holds the sums.

    Args:
        model, batches, forward, probes, generator, on_batch: as of `panther.convert.calibration.gather`.
        groups: layers of each pass; together all that are calibrated.
        moving: as of `gather`; None for a single group.
        full: collect the full moments of all layers; else only of those that need them.
    """
    start = generator.get_state()
    active = [unit for group in groups for unit in group]
    for group in groups:
        generator.set_state(start)
        members, pool = {id(unit) for unit in group}, InputPool()
        sums = _empty(group, pool, full=full)

        def after_batch(pool: InputPool = pool) -> None:
            pool.flush()
            on_batch()

        gather(
            model,
            [(unit, sums[id(unit)]) for unit in group],
            batches,
            forward,
            probes=probes,
            generator=generator,
            moving=moving,
            unwatched=[unit for unit in active if id(unit) not in members],
            on_batch=after_batch,
        )
        pool.finish()
        del pool, after_batch
        yield group, sums


def _empty(group: Sequence[Unit], pool: InputPool, *, full: bool) -> dict[int, Sums]:
    """Sums by the id of a unit: linear layers share those of their inputs, others have moments."""
    linear = [] if full else [unit for unit in group if not unit.takes_moments]
    found: dict[int, Sums] = dict(zip(map(id, linear), pool.statistics(linear), strict=True))
    return found | {id(unit): empty_moments(unit) for unit in group if id(unit) not in found}


def _notes(groups: Sequence[Sequence[Unit]], most: int, room: float, *, kept: int) -> tuple[str, ...]:
    notes = []
    if len(groups) > 1:
        notes.append(
            f"calibrated in {len(groups)} passes over the inputs, at most {max(map(len, groups))} of "
            f"{sum(map(len, groups))} layers in each, whose statistics take {most / 1e6:,.1f} MB"
            + (f"; {room / 1e6:,.1f} MB is too little for the largest layer" if most > room else "")
        )
    if kept:
        notes.append(f"{kept / 1e6:,.1f} MB of factors were kept off the device, or on the disk beside a CPU")
    return tuple(notes)
