"""Calibration statistics of linear layers in as few numbers as a spectrum needs.

See docs/decisions/0083-statistics-on-the-smaller-side.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from panther.convert.layers import Unit
from panther.convert.moments import check_finite
from panther.linalg.gram import add_gram_, mirror_, times

# the second moments of a side are left out if it is this many times as wide as the other
WIDER = 2
# identity of a tensor of rows: address, shape, strides and version
_Key = tuple[int, torch.Size, tuple[int, ...], int]


@dataclass
class Inputs:
    """Sums over the input rows of layers that saw the same rows, float64; None before the first.

    Attributes:
        rows: how many.
        total: (d_in,), Σ x.
        squares: (), Σ ‖x‖².
        second: (d_in, d_in), Σ x xᵀ, its upper triangle until it is read; None if no layer needs it.
    """

    rows: int = 0
    total: Tensor | None = None
    squares: Tensor | None = None
    second: Tensor | None = None

    def add(self, x: Tensor, *, second: bool) -> None:
        """Add rows, (n, d_in) float64."""
        self.rows += len(x)
        total, squares = x.sum(0), x.square().sum()
        self.total = total if self.total is None else self.total + total
        self.squares = squares if self.squares is None else self.squares + squares
        if second:
            if self.second is None:
                self.second = x.new_zeros(x.shape[1], x.shape[1])
            add_gram_(self.second, x)

    def copy(self) -> Inputs:
        """A copy that is updated separately."""
        return Inputs(self.rows, *(None if t is None else t.clone() for t in (self.total, self.squares, self.second)))


@dataclass(eq=False)
class Statistics:
    """Sums over the rows that a linear layer saw in calibration, of its smaller side where it has one.

    A spectrum needs W C_in Wᵀ where the layer is wide, and Wᵀ C_out W where it is tall
    (`panther.linalg.whitening.spectrum_from_gram`). These are sums of outer products of W x and Wᵀ g,
    which are summed in place of x xᵀ and g gᵀ where that is smaller by far.

    Attributes:
        unit: the layer.
        rows, calls, extreme: as of `Moments`.
        inputs: sums over its input; those of layers that saw the same rows are one object.
        response: (d_out, d_out), Σ (W x)(W x)ᵀ of a wide layer, in place of the second moment of inputs.
        response_total: (d_out,), Σ W x of a wide layer, rounded as in the response.
        sensitivity: (d_out, d_out), Σ Jᵀ J; of a tall layer (d_in, d_in), Σ (Wᵀ Jᵀ)(J W). None without derivatives.
        outputs_squares: the trace of Σ Jᵀ J.
    """

    unit: Unit
    pool: InputPool
    inputs: Inputs = field(default_factory=Inputs)
    calls: int = 0
    extreme: Tensor | None = None
    response: Tensor | None = None
    response_total: Tensor | None = None
    sensitivity: Tensor | None = None
    outputs_squares: Tensor | None = None

    def __post_init__(self) -> None:
        d_out, d_in = self.unit.out_features, self.unit.in_features
        self.wide, self.tall = d_in >= WIDER * d_out, d_out >= WIDER * d_in

    @property
    def at_inputs(self) -> bool:
        """See `Sums`."""
        return self.tall

    @property
    def rows(self) -> int:
        """Number of rows that affect an output of the model."""
        return self.inputs.rows

    @property
    def mean(self) -> Tensor:
        """(d_in,)."""
        total = self.inputs.total
        if total is None:
            raise ValueError(f"{self.unit.name} saw no rows")
        return total / max(self.rows, 1)

    def add(self, x: Tensor, kept: Tensor | None, version: int) -> None:
        """Add rows once the pool is flushed, see `Sums.add`."""
        self.pool.add(self, x, kept, version)

    def add_response(self, x: Tensor) -> None:
        """Add W x for rows of a wide layer; on a CPU, W x has the type of x, at least float32."""
        # float32 is enough: derivatives have the same rounding errors before they are squared
        wide = torch.float32 if x.device.type == "cpu" else torch.float64
        y = times(x.to(torch.promote_types(x.dtype, wide)), self.unit.weight.t()).double()
        if self.response is None or self.response_total is None:
            self.response = y.new_zeros(y.shape[1], y.shape[1])
            self.response_total = y.new_zeros(y.shape[1])
        self.response_total += y.sum(0)
        add_gram_(self.response, y)

    def add_gradients(self, g: Tensor, scale: Tensor, at_inputs: Tensor | None = None) -> None:
        """Add derivatives, see `Sums.add_gradients`."""
        squares = torch.linalg.vector_norm(g, dim=1).double().square().sum() * scale
        self.outputs_squares = squares if self.outputs_squares is None else self.outputs_squares + squares
        if self.tall:
            g = times(g, self.unit.weight) if at_inputs is None else at_inputs
        if self.sensitivity is None:
            self.sensitivity = torch.zeros(g.shape[1], g.shape[1], dtype=torch.float64, device=g.device)
        add_gram_(self.sensitivity, g, scale)

    def check(self, name: str) -> None:
        """Refuse sums that are not finite, see `Sums.check`."""
        squares = self.inputs.squares
        if squares is not None:
            check_finite(name, squares, self.outputs_squares)


class InputPool:
    """The inputs of several layers, each tensor of rows added once whichever layers read it.

    Layers share their sums while they see the same rows in every call; where they part, the sums are copied.
    """

    def __init__(self) -> None:
        self._every: list[Statistics] = []
        self._pending: dict[Statistics, list[tuple[Tensor, Tensor | None, _Key]]] = {}

    def statistics(self, units: Sequence[Unit]) -> list[Statistics]:
        """Empty ones, which share their inputs until they see different rows."""
        empty: dict[tuple[torch.device, int], Inputs] = {}
        made = [
            Statistics(unit, self, empty.setdefault((unit.weight.device, unit.in_features), Inputs())) for unit in units
        ]
        self._every += made
        return made

    def add(self, statistics: Statistics, x: Tensor, kept: Tensor | None, version: int) -> None:
        """Note the rows of a call."""
        key = (x.data_ptr(), x.shape, x.stride(), version)
        self._pending.setdefault(statistics, []).append((x, kept, key))

    def flush(self) -> None:
        """Add the rows noted since the last flush."""
        sharing: dict[int, list[Statistics]] = {}
        for statistics in self._every:
            sharing.setdefault(id(statistics.inputs), []).append(statistics)
        for users in sharing.values():
            parts = self._alike(users)
            # checked before anything is added
            copies = [users[0].inputs, *(part[0].inputs.copy() for part in parts[1:])]
            for part, inputs in zip(parts, copies, strict=True):
                if all(statistics.wide for statistics in part):
                    inputs.second = None
                for statistics in part:
                    statistics.inputs = inputs
            for part in parts:
                self._add(part)
        self._pending.clear()

    def finish(self) -> None:
        """Complete the symmetric matrices, once all is added, and let go of them."""
        for inputs in {id(statistics.inputs): statistics.inputs for statistics in self._every}.values():
            if inputs.second is not None:
                mirror_(inputs.second)
        for statistics in self._every:
            for sums in (statistics.response, statistics.sensitivity):
                if sums is not None:
                    mirror_(sums)
        self._every.clear()

    def _alike(self, users: Sequence[Statistics]) -> list[list[Statistics]]:
        """Those that saw the same rows together."""
        parts: list[list[Statistics]] = []
        for statistics in users:
            calls = self._pending.get(statistics, [])
            part = next((part for part in parts if _same(self._pending.get(part[0], []), calls)), None)
            if part is None:
                parts.append([statistics])
            else:
                part.append(statistics)
        return parts

    def _add(self, part: Sequence[Statistics]) -> None:
        second = any(not statistics.wide for statistics in part)
        for x, kept, _ in self._pending.get(part[0], []):
            rows = x if kept is None else x[kept]
            part[0].inputs.add(rows.double(), second=second)
            for statistics in part:
                if statistics.wide:
                    statistics.add_response(rows)


def _same(
    calls: Sequence[tuple[Tensor, Tensor | None, _Key]], others: Sequence[tuple[Tensor, Tensor | None, _Key]]
) -> bool:
    if [key for *_, key in calls] != [key for *_, key in others]:
        return False
    return all(
        (kept is None) == (other is None) and (kept is None or other is None or torch.equal(kept, other))
        for (_, kept, _), (_, other, _) in zip(calls, others, strict=True)
    )
