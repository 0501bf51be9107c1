"""Sketched layers with matrices of signs: the learned terms in 8 or 4 bits, beside signs of one bit an entry.

See docs/decisions/0071-terms-in-bytes.md.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from panther.convert.layers import Place
from panther.linalg.levels import LARGEST, LARGEST_4_BITS, steady_steps
from panther.linalg.whitening import weighted
from panther.nn import SKLinear
from panther.nn.hooks import take_hooks
from panther.nn.quantized.grid import Grid
from panther.quantize.blocks import Known
from panther.quantize.feedback import compensated
from panther.quantize.grid import best
from panther.quantize.loss import weighed_loss
from panther.quantize.sketched import SketchedUnit

_LARGEST = {8: LARGEST, 4: LARGEST_4_BITS}
_SHARES = (1.0, 0.95, 0.9, 0.85, 0.8)


@dataclass(frozen=True)
class TermOption:
    """A sketched layer with S1s and S2s as integers times steps; the file holds the integers.

    There is a step for each column, or for each row where these are fewer. The layer stays an SKLinear, and its running
    graph two products in floats.

    Attributes:
        unit: the layer.
        read: computes its calibration statistics from the kept moments.
        bits: of the integers, 8 or 4.
    """

    unit: SketchedUnit
    read: Callable[[], Known]
    bits: int = 8

    @property
    def precision(self) -> str:
        """Name in reports."""
        return f"int{self.bits}"

    @property
    def alpha(self) -> float | None:
        """Smoothing strength: none."""
        return None

    @property
    def reason(self) -> str:
        """The format in words."""
        return f"learned terms in {self.bits} bits beside signs of one bit, in the file"

    @property
    def weight_bytes(self) -> int:
        """Bytes in the file: terms and their steps, and signs."""
        layer = self.unit.layer
        rank = layer.num_terms * layer.low_rank
        steps = min(rank, layer.in_features) + min(rank, layer.out_features)
        terms = sum(-(-S.numel() * self.bits // 8) for S in (layer.S1s, layer.S2s))
        signs = sum(-(-U.numel() // 8) for U in (layer.U1s, layer.U2s))
        return terms + 4 * steps + signs

    @property
    def estimate(self) -> float:
        """Error of the finished layer."""
        return self.error

    @property
    def error(self) -> float:
        """Error of the finished layer."""
        lost = self.unit.layer.dense_weight().detach() - self._made.dense_weight().detach()
        known = self.read()
        return weighed_loss(lost, known.sensitivity, known.second)

    @cached_property
    def _made(self) -> SKLinear:
        layer = self.unit.layer
        L, scale = layer.num_terms, 1 / (2 * layer.num_terms)
        known = self.read()
        C, G = known.second.double(), known.sensitivity.double()
        S1, U2 = (terms.detach().double().transpose(0, 1).flatten(1) for terms in (layer.S1s, layer.U2s))
        U1, S2 = (terms.detach().double().flatten(0, 1) for terms in (layer.U1s, layer.S2s))
        first = _rounded(S1, C, scale**2 * U1 @ weighted(G, U1.t()), self.bits)
        second = _rounded(S2, scale**2 * U2.t() @ C @ U2, G, self.bits)
        made = copy.deepcopy(layer)
        with torch.no_grad():
            made.S1s.copy_(first.reshape(layer.in_features, L, -1).transpose(0, 1))
            made.S2s.copy_(second.reshape(L, -1, layer.out_features))
        return made

    def layers(self, *, final: bool) -> list[tuple[Place, nn.Module]]:  # noqa: ARG002
        """The layer for its module."""
        (place,) = self.unit.places
        take_hooks(self._made, place.module)
        return [(place, self._made.train(place.module.training))]


def _rounded(S: Tensor, C: Tensor, G: Tensor, bits: int) -> Tensor:
    """(d_in, d_out) float32: integers times steps, for inputs of a second moment."""
    W, by_row = S.t(), S.shape[0] < S.shape[1]
    grid = _grid(W, C.diagonal(), _LARGEST[bits], by_input=by_row)
    levels = compensated(W, grid, C, G).t()
    if by_row:
        return (levels.t() * steady_steps(levels.t(), grid.step[0].float())).t()
    return levels * steady_steps(levels, grid.step[:, 0].float())


def _grid(W: Tensor, variance: Tensor, largest: int, *, by_input: bool) -> Grid:
    """The grid of a weight (d_out, d_in) with one step for each output, or for each input, that loses least."""
    tiny = torch.finfo(torch.float32).tiny
    if not by_input:
        full = W.abs().amax(1, keepdim=True).clamp_min(tiny) / largest
        ends = torch.full_like(full, largest)
        return best(W, (Grid(full * share, -ends, ends, W.shape[1]) for share in _SHARES), variance)
    full = W.abs().amax(0).clamp_min(tiny) / largest
    ends = torch.full_like(W, largest)
    grids = [Grid((full * share).expand_as(W), -ends, ends, 1) for share in _SHARES]
    losses = torch.stack([grid.loss(W, variance).sum(0) for grid in grids])
    step = torch.stack([grid.step[0] for grid in grids]).gather(0, losses.argmin(0, keepdim=True))
    return Grid(step.expand_as(W), -ends, ends, 1)
