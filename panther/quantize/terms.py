"""Sketched layers with matrices of signs: the learned terms in 8 bits, beside signs of one bit an entry.

See docs/decisions/0071-terms-in-bytes.md.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from panther.convert.layers import Place
from panther.linalg.levels import steady_steps
from panther.nn import SKLinear
from panther.nn.hooks import take_hooks
from panther.quantize.blocks import Known
from panther.quantize.feedback import compensated
from panther.quantize.grid import Grid, best
from panther.quantize.loss import weighed_loss
from panther.quantize.sketched import SketchedUnit

_LARGEST = 127
_SHARES = (1.0, 0.95, 0.9, 0.85, 0.8)


@dataclass(frozen=True)
class TermOption:
    """A sketched layer with S1s and S2s as integers times a step for each column; the file holds the integers.

    The layer stays an SKLinear, and its running graph two products in floats.

    Attributes:
        unit: the layer.
        known: what calibration says of it.
    """

    unit: SketchedUnit
    known: Known

    @property
    def precision(self) -> str:
        """Name in reports."""
        return "int8"

    @property
    def alpha(self) -> float | None:
        """Smoothing strength: none."""
        return None

    @property
    def reason(self) -> str:
        """The format in words."""
        return "learned terms in 8 bits beside signs of one bit, in the file"

    @property
    def weight_bytes(self) -> int:
        """Bytes in the file: terms and their steps, and signs."""
        layer = self.unit.layer
        steps = layer.num_terms * layer.low_rank + layer.out_features
        signs = sum(-(-U.numel() // 8) for U in (layer.U1s, layer.U2s))
        return layer.S1s.numel() + layer.S2s.numel() + 4 * steps + signs

    @property
    def estimate(self) -> float:
        """Error of the finished layer."""
        return self.error

    @property
    def error(self) -> float:
        """Error of the finished layer."""
        lost = self.unit.layer.dense_weight().detach() - self._made.dense_weight().detach()
        return weighed_loss(lost, self.known.sensitivity, self.known.second)

    @cached_property
    def _made(self) -> SKLinear:
        layer = self.unit.layer
        L, scale = layer.num_terms, 1 / (2 * layer.num_terms)
        C, G = self.known.second.double(), self.known.sensitivity.double()
        S1, U2 = (terms.detach().double().transpose(0, 1).flatten(1) for terms in (layer.S1s, layer.U2s))
        U1, S2 = (terms.detach().double().flatten(0, 1) for terms in (layer.U1s, layer.S2s))
        first = _rounded(S1, C, scale**2 * U1 @ G @ U1.t())
        second = _rounded(S2, scale**2 * U2.t() @ C @ U2, G)
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


def _rounded(S: Tensor, C: Tensor, G: Tensor) -> Tensor:
    """(d_in, d_out) float32: integers times a step for each column, for inputs of a second moment."""
    W = S.t()
    full = W.abs().amax(1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny) / _LARGEST
    ends = torch.full_like(full, _LARGEST)
    grid = best(W, (Grid(full * share, -ends, ends, W.shape[1]) for share in _SHARES), C.diagonal())
    levels = compensated(W, grid, C, G).t()
    return levels * steady_steps(levels, grid.step[:, 0].float())
