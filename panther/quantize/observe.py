"""Layer inputs in calibration: a sample of rows, and the layers that read the same tensor."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from panther.convert.experts import expert_groups, pool_moments
from panther.convert.fast_path import observing
from panther.convert.forward import Forward, outputs_of, run
from panther.convert.layers import Unit
from panther.convert.moments import Moments
from panther.convert.spill import Keeper, Kept

# rows sampled from each layer's inputs, to choose ranges
SAMPLE = 1024


class SampledRows(Mapping[int, Tensor]):
    """Rows by the id of a unit, (n, d_in) float32; loaded from the keeper when they are read.

    Args:
        keeper: stores them.
    """

    def __init__(self, keeper: Keeper) -> None:
        self._keeper = keeper
        self._parts: dict[int, list[Kept]] = {}

    def __getitem__(self, key: int) -> Tensor:
        parts = self._parts[key]
        return parts[0].load() if len(parts) == 1 else torch.cat([part.load() for part in parts])

    def __iter__(self) -> Iterator[int]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)

    def add(self, key: int, rows: Tensor) -> None:
        """Add rows to those of a unit."""
        self._parts.setdefault(key, []).append(self._keeper.store(rows))

    def borrow(self, key: int, others: Sequence[int]) -> None:
        """Give a unit the rows of others."""
        self._parts[key] = [part for other in others for part in self._parts[other]]


class Observed:
    """The inputs of the watched layers.

    Attributes:
        rows: by the id of a unit, (n, d_in) float32, drawn at random from the rows of every batch that its
            attention_mask does not hide.
        lowest, highest: by the id of a unit, (d_in,), over all rows.
        examples: rows of the model's first output, over all batches.
    """

    def __init__(self, units: Sequence[Unit], keeper: Keeper | None = None) -> None:
        self.rows = SampledRows(keeper or Keeper())
        self.lowest: dict[int, Tensor] = {}
        self.highest: dict[int, Tensor] = {}
        self.examples = 0
        self._units = list(units)
        self._calls: dict[int, list[tuple[int, int, int]]] = {id(unit): [] for unit in units}

    def groups(self) -> list[list[Unit]]:
        """The units that were called, those that read the same tensors together, in the order of the model."""
        found: dict[tuple[tuple[int, int, int], ...], list[Unit]] = {}
        for unit in self._units:
            if id(unit) in self.rows:
                found.setdefault(tuple(self._calls[id(unit)]), []).append(unit)
        return list(found.values())

    def called(self, unit: Unit, key: tuple[int, int, int]) -> None:
        """Record a call, by the number of the batch, and the identity and version of the tensor."""
        self._calls[id(unit)].append(key)

    def add(self, unit: Unit, x: Tensor, kept: Tensor) -> None:
        """Add the rows of a call, and those of them that are kept."""
        key = id(unit)
        low, high = x.amin(0), x.amax(0)
        known = key in self.lowest
        self.rows.add(key, kept)
        self.lowest[key] = torch.minimum(self.lowest[key], low) if known else low
        self.highest[key] = torch.maximum(self.highest[key], high) if known else high

    def borrow(self, unit: Unit, others: Sequence[Unit]) -> None:
        """Copy the sampled rows of other units to a unit that received none."""
        known = [id(other) for other in others if id(other) in self.rows]
        if known and id(unit) not in self.rows:
            self.rows.borrow(id(unit), known)
            self.lowest[id(unit)] = torch.stack([self.lowest[key] for key in known]).amin(0)
            self.highest[id(unit)] = torch.stack([self.highest[key] for key in known]).amax(0)
            # shares its input tensor with no other layer
            self._calls[id(unit)] = [(-1, id(unit), 0)]


@torch.no_grad()
def observe(
    model: nn.Module,
    units: Sequence[Unit],
    batches: Sequence[Any],
    forward: Forward | None,
    *,
    sample: int,
    generator: torch.Generator,
    keeper: Keeper | None = None,
    on_batch: Callable[[], None] = lambda: None,
) -> Observed:
    """Run the batches through the model and sample the inputs of every unit.

    Args:
        model: in eval mode.
        units: whose modules are watched.
        batches, forward: as `panther.convert.forward.call` takes them.
        sample: rows to keep of each unit, in all.
        generator: of the draws, on the CPU.
        keeper: stores the rows; they stay in memory when None.
        on_batch: called after each batch.
    """
    seen = Observed(units, keeper)
    share = math.ceil(sample / len(batches))
    # tensors of the current batch are kept alive, so that no identity is reused
    alive: list[Tensor] = []
    state: dict[str, Any] = {}

    def hook(unit: Unit) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], __: Tensor) -> None:
            x: Tensor = args[0] if args else next(iter(kwargs.values()))
            alive.append(x)
            seen.called(unit, (state["batch"], id(x), x._version))
            rows = _counted(x.detach(), state["mask"])
            if len(rows):
                kept = torch.randperm(len(rows), generator=generator)[:share]
                seen.add(unit, rows.float(), rows[kept.to(rows.device)].float())

        return hook

    handles = [
        place.module.register_forward_hook(hook(unit), with_kwargs=True) for unit in units for place in unit.places
    ]
    try:
        for number, batch in enumerate(batches):
            state.update(batch=number, mask=batch.get("attention_mask") if isinstance(batch, Mapping) else None)
            with observing(model):
                outputs = outputs_of(run(model, batch, forward, f"calibration: batch {number}"), batch)
            seen.examples += len(outputs[0][0]) if outputs else 0
            alive.clear()
            on_batch()
    finally:
        for handle in handles:
            handle.remove()
    return seen


def share_experts(model: nn.Module, units: Sequence[Unit], moments: Mapping[int, Moments], seen: Observed) -> None:
    """Share calibration moments among the experts of a module, and rows with experts that received none.

    Args:
        model: opened.
        units: those that were watched.
        moments: by the id of a unit; are changed.
        seen: is changed.
    """
    pool_moments(model, units, moments)
    for group in expert_groups(model, units):
        called = [unit for unit in group if id(unit) in seen.rows]
        for unit in group:
            seen.borrow(unit, called)


def _counted(x: Tensor, mask: Any) -> Tensor:
    """The rows that an attention_mask does not hide."""
    if isinstance(mask, Tensor) and x.dim() > mask.dim() == 2 and x.shape[:2] == mask.shape:
        return x[mask.to(x.device).bool()].reshape(-1, x.shape[-1])
    return x.reshape(-1, x.shape[-1])
