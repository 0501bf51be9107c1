"""The options of a linear layer as two factors in blocks of 4 bits."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
from torch import Tensor, nn

from panther.compression.blocks import known_of
from panther.compression.options import INT4, LOW_RANK_INT4, Option, Product, Replacements
from panther.convert.candidates import Candidate
from panther.convert.layers import Place, bias_of
from panther.nn.hooks import take_hooks
from panther.nn.quantized import FactoredLinear
from panther.quantize.blocks import Blocks, MadeFactors, mean_shift
from panther.quantize.candidates import Int8Option
from panther.quantize.factors import factor_bytes, quantize_factors

_BLOCKS = Blocks(4, 128)


class FactorOptions:
    """The options of one layer.

    Args:
        layer: the layer with its calibration statistics.
        spectrum: its decomposed weight.
        tail: error of truncation at each rank, as `Option.error`.
    """

    def __init__(self, layer: Int8Option, spectrum: Candidate, tail: Tensor) -> None:
        self._unit, self._spectrum, self._tail, self._layer = layer.unit, spectrum, tail, layer
        self._made: dict[int, MadeFactors] = {}

    def of(self, every: Sequence[int]) -> list[Option]:
        """Options for increasing ranks; only the first and the last are rounded, costs in between are interpolated."""
        ends = sorted({every[0], every[-1]})
        excess = [max(self._rounded(rank).error - self._tail[rank].item(), 0.0) for rank in ends]
        d_out, d_in = self._unit.weight.shape
        found = []
        for rank in every:
            sizes = (_BLOCKS.size(d_in), _BLOCKS.size(rank))
            found.append(
                Option(
                    LOW_RANK_INT4,
                    factor_bytes(d_out, d_in, rank, _BLOCKS) + 4 * d_out * len(self._unit.biases),
                    rank * (d_in + d_out),
                    self._tail[rank].item() + float(np.interp(rank, ends, excess)),
                    partial(self._modules, rank),
                    rank,
                    (Product(INT4, d_in, rank, block_size=sizes[0]), Product(INT4, rank, d_out, block_size=sizes[1])),
                )
            )
        return found

    def _rounded(self, rank: int) -> MadeFactors:
        if rank not in self._made:
            left, right = self._spectrum.factors(rank)
            self._made[rank] = quantize_factors(left, right, _BLOCKS, known_of(self._layer), W=self._unit.weight)
        return self._made[rank]

    def _modules(self, rank: int) -> Replacements:
        """A layer for each place; those of one weight share it, each with a bias of its place."""
        layer, found = self._rounded(rank).layer, list[tuple[Place, nn.Module]]()
        lost, known = self._unit.weight.double() - layer.weight.double(), known_of(self._layer)
        for place in self._unit.places:
            bias = mean_shift(lost, known, bias_of(place.module))
            made = FactoredLinear(layer.down, layer.up.with_bias(bias))
            take_hooks(made, place.module)
            found.append((place, made.to(self._unit.weight.device).train(place.module.training)))
        return found
