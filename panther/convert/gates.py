"""The effect of each component of a decomposed layer on the model's outputs, by the gradients of gates.

See docs/decisions/0099-gates.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from panther.convert.calibration import gather
from panther.convert.candidates import Candidate
from panther.convert.compact import CompactCandidate
from panther.convert.forward import Forward
from panther.convert.layers import Unit
from panther.convert.moments import CallRows, CallSums
from panther.convert.survey import survey
from panther.linalg.gram import times

# with fewer examples the products of second moments are more precise
LEAST_EXAMPLES = 16
_TINY = torch.finfo(torch.float64).tiny


@dataclass(eq=False)
class Gates(CallSums):
    """Squared gradients of the gates of a layer, whose output is Σ gᵢ (x · leftᵢ) rightᵢ with every gate gᵢ at 1.

    With v a random direction of the model's outputs y, cᵢ = ∂(vᵀy)/∂gᵢ is what removing component i changes, to first
    order. It is a sum over the rows of an example, so it takes in how inputs and derivatives go together in a row, and
    the rows of an example with each other, which the product of their second moments does not.

    Attributes:
        candidate: the layer, with R components.
        single: (R,), Σ cᵢ² over examples and probes, float64.
        cut: (R + 1,), Σ (Σ_{j ≥ i} cⱼ)²: all components from i on, removed together, with what W has beyond the R
            components, the last one.
        examples: number of sums cᵢ, times probes.
        calls, extreme, sensitivity: as of `panther.convert.moments.Sums`; the last two are not used.
    """

    candidate: CompactCandidate
    calls: int = 0
    examples: int = 0
    extreme: Tensor | None = None
    sensitivity: Tensor | None = None

    @property
    def at_inputs(self) -> bool:
        """See `Sums`."""
        return self.candidate.narrow is not None and self.candidate.narrow_inputs

    @property
    def rows(self) -> int:
        """None are added, see `Sums`."""
        return 0

    def __post_init__(self) -> None:
        device = self.candidate.unit.device
        spectrum, narrow = self.candidate.spectrum, self.candidate.narrow
        left, right = (factor.to(device).float() for factor in (spectrum.left, spectrum.right))
        self._left, self._right = left, right.t()
        self._narrow = None if narrow is None else narrow.to(device).float()
        weighing, W = self.candidate.weighing, self.candidate.unit.weight
        mean = None if weighing is None else weighing.mean
        # taken off the products, in place of the rows
        self._mean = None
        if mean is not None:
            row = mean.unsqueeze(0)
            self._mean = times(row, left).squeeze(0).float(), times(row, W.t()).squeeze(0).float()
        self.single = torch.zeros(left.shape[1], dtype=torch.float64, device=device)
        self.cut = torch.zeros(left.shape[1] + 1, dtype=torch.float64, device=device)
        self._pending: Tensor | None = None

    def add(self, x: Tensor, kept: Tensor | None, version: int) -> None:
        """Rows alone are not enough, see `add_call`."""

    def add_gradients(self, g: Tensor, scale: Tensor, at_inputs: Tensor | None = None) -> None:
        """Derivatives alone are not enough, see `add_call`."""

    def add_call(self, call: CallRows, g: Tensor, scale: Tensor, at_inputs: Tensor | None) -> None:
        """Add a call's part of the gradients of one probe, see `CallSums.add_call`."""
        outputs = call.products.reshape(g.shape).float()
        if self._mean is not None:
            outputs = outputs - self._mean[1]
        each = self._inputs(call.x, outputs).mul_(self._derivatives(g, at_inputs))
        rest = torch.linalg.vecdot(outputs, g) - each.sum(1)
        c = _by_example(torch.cat([each, rest.unsqueeze(1)], 1), call.shape, call.examples).double() * scale.sqrt()
        if self._pending is None:
            self._pending = c
        elif len(self._pending) == len(c):
            self._pending += c
        else:
            self._pending = (self._pending.sum(0) + c.sum(0)).unsqueeze(0)

    def _inputs(self, x: Tensor, outputs: Tensor) -> Tensor:
        """(n, R), x left: by the outputs of a layer with fewer of them, (x Wᵀ) narrow."""
        if self._narrow is not None and not self.candidate.narrow_inputs:
            return outputs @ self._narrow
        inputs = x.float() @ self._left
        return inputs if self._mean is None else inputs.sub_(self._mean[0])

    def _derivatives(self, g: Tensor, at_inputs: Tensor | None) -> Tensor:
        """(n, R), g rightᵀ: by the derivatives at the inputs of a layer with fewer of them, (g W) narrow."""
        if self._narrow is not None and self.candidate.narrow_inputs and at_inputs is not None:
            return at_inputs @ self._narrow
        return g @ self._right

    def end_probe(self) -> None:
        """Add the squares of the sums over the calls of one backward pass."""
        c, self._pending = self._pending, None
        if c is None:
            return
        self.examples += len(c)
        self.single += c[:, :-1].square().sum(0)
        self.cut += c.flip(1).cumsum(1).flip(1).square().sum(0)

    def check(self, name: str) -> None:
        """Accept all sums, see `Sums.check`: `measure` drops those that are not finite."""

    @property
    def usable(self) -> bool:
        """Whether derivatives reached it, all of them finite."""
        return bool(self.single.any()) and bool(self.cut.isfinite().all())

    def release(self) -> None:
        """Let go of the factors."""
        del self._left, self._right, self._narrow, self._mean


def _by_example(products: Tensor, shape: torch.Size, examples: int) -> Tensor:
    """(n, R), summed over the rows of each example; over all rows where the examples are not found in the shape.

    The directions v of different examples are independent, so that sums over several examples have the same expected
    square as those over each; they are only less precise.
    """
    axis = next((axis for axis, size in enumerate(shape[:-1]) if size == examples), None)
    R = products.shape[1]
    if axis is not None:
        return products.view(*shape[:-1], R).movedim(axis, 0).reshape(examples, -1, R).sum(1)
    if examples and len(products) % examples == 0:
        return products.view(examples, -1, R).sum(1)
    return products.sum(0, keepdim=True)


def measure(
    model: nn.Module,
    candidates: Sequence[Candidate],
    batches: Sequence[Any],
    forward: Forward | None,
    *,
    probes: int,
    generator: torch.Generator,
    room: Mapping[torch.device, float],
    on_batch: Callable[[int, int], None],
) -> list[Gates]:
    """Measure the gates of the linear layers, in groups whose factors fit into memory.

    Left out are layers that no derivative or too few examples reach, and those whose sums are not finite.

    Args:
        model: in eval mode and frozen.
        candidates: those of other layers are left out.
        batches, forward, probes, generator: as `panther.convert.calibration.gather` takes them.
        room: bytes for factors by device.
        on_batch: called with (done, all).
    """
    linear = [candidate for candidate in candidates if isinstance(candidate, CompactCandidate)]
    groups = _split(linear, room)
    moving = None
    if len(groups) > 1:
        moving = survey(model, [c.unit for c in linear], batches[0], forward, derivatives=True).moving
    found: list[Gates] = []
    start, done, every = generator.get_state(), 0, len(groups) * len(batches)

    def count() -> None:
        nonlocal done
        done += 1
        on_batch(done, every)

    for group in groups:
        generator.set_state(start)
        gates = [Gates(candidate) for candidate in group]
        watched: list[tuple[Unit, Gates]] = [(each.candidate.unit, each) for each in gates]
        gather(model, watched, batches, forward, probes=probes, generator=generator, moving=moving, on_batch=count)
        for each in gates:
            each.release()
        found += [each for each in gates if each.examples >= probes * LEAST_EXAMPLES and each.usable]
    return found


def _split(candidates: Sequence[CompactCandidate], room: Mapping[torch.device, float]) -> list[list[CompactCandidate]]:
    groups: list[list[CompactCandidate]] = []
    used: dict[torch.device, float] = {}
    for candidate in candidates:
        unit = candidate.unit
        # the factors twice, as they are converted
        size = 2 * 4 * candidate.ranks[-1] * (unit.in_features + unit.out_features)
        if not groups or used.get(unit.device, 0.0) + size > room[unit.device]:
            groups.append([])
            used = {}
        groups[-1].append(candidate)
        used[unit.device] = used.get(unit.device, 0.0) + size
    return groups


@dataclass(eq=False)
class GatedCandidate(CompactCandidate):
    """A decomposed linear layer whose errors were measured by gates.

    Attributes:
        order: (R,), the components, those to be kept first at the front.
        by_rank: (R + 1,), the squared error of every rank.
    """

    order: Tensor
    by_rank: Tensor

    def tail(self) -> Tensor:
        """The squared error of every rank from 0 on."""
        return self.by_rank

    def factors(self, rank: int) -> tuple[Tensor, Tensor]:
        """(d_in, rank) and (rank, d_out), float64."""
        device, left, right = self.unit.device, self.spectrum.left, self.spectrum.right
        kept = self.order[:rank].sort().values.to(left.device)
        return left[:, kept].to(device).double(), right[kept].to(device).double()

    def errors(self, rank: int) -> tuple[float, float | None]:
        """The relative errors in the weight and on the data.

        ‖X (W - Ŵ)ᵀ‖² + damping · ‖W - Ŵ‖² falls by ‖rightᵢ‖² with each component, as in `panther.convert.compact`.
        """
        W = self.unit.weight
        left, right = self.factors(rank)
        whole = torch.linalg.vector_norm(W, dtype=torch.float64).square()
        kept = ((left.t() @ left) * (right @ right.t())).sum()
        lost = whole + kept - 2 * (times(left.t(), W.t()) * right).sum()
        in_weight = (lost / whole.clamp_min(_TINY)).clamp_min(0)
        on_data = W.new_zeros((), dtype=torch.float64)
        if self.on_data > 0:
            on_data = 1 + (self.damping * (whole - lost) - right.square().sum()) / self.on_data
        return in_weight.item() ** 0.5, on_data.clamp_min(0).item() ** 0.5


def gated(candidates: Sequence[Candidate], gates: Sequence[Gates]) -> list[list[Candidate]]:
    """The candidates with errors by their gates, in two ways: in their order, and the largest gradients first.

    Candidates without gates are as they were; without any gates there is no way.
    """
    known = {id(each.candidate): each for each in gates}
    if not known:
        return []
    in_order: list[Candidate] = []
    largest_first: list[Candidate] = []
    for candidate in candidates:
        each = known.get(id(candidate))
        if each is None or not isinstance(candidate, CompactCandidate):
            in_order.append(candidate)
            largest_first.append(candidate)
            continue
        order = each.single.argsort(descending=True)
        alone = each.single[order].flip(0).cumsum(0).flip(0)
        in_order.append(_gated(candidate, torch.arange(len(order), device=order.device), each.cut))
        largest_first.append(_gated(candidate, order, torch.cat([alone, alone.new_zeros(1)]) + each.cut[-1]))
    return [in_order, largest_first]


def _gated(candidate: CompactCandidate, order: Tensor, by_rank: Tensor) -> GatedCandidate:
    values = {each.name: getattr(candidate, each.name) for each in fields(candidate)}
    return GatedCandidate(**values, order=order, by_rank=by_rank)
