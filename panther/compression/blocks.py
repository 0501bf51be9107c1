"""The options of a linear layer in blocks: 4 bits, 4 bits with a low-rank correction, and 8 bits."""

from __future__ import annotations

from functools import partial

import torch

from panther.compression.options import INT4, INT8_BLOCKS, Option, Product, Replacements
from panther.linalg.whitening import damped, whitened_svd
from panther.nn.quantized import BlockLinear
from panther.quantize.block_option import BlockOption
from panther.quantize.blocks import Blocks, Known
from panther.quantize.candidates import Int8Option
from panther.quantize.feedback import INPUT_DAMPING, OUTPUT_DAMPING

# ties go to fewer bytes, or the smaller error
_BLOCK_SIZES = (128, 32)
_CORRECTION_RANK = 16
_PLAIN, _FINE = (Blocks(4, size) for size in _BLOCK_SIZES)
_CORRECTED, _EIGHT = Blocks(4, _BLOCK_SIZES[0], _CORRECTION_RANK), Blocks(8, _BLOCK_SIZES[0])


class BlockOptions:
    """The options of one layer.

    Args:
        layer: the layer with its calibration statistics.
    """

    def __init__(self, layer: Int8Option) -> None:
        self._unit, self._read = layer.unit, partial(known_of, layer)
        self._plain = BlockOption(self._unit, _PLAIN, self._read)

    def of(self, kind: str) -> list[Option]:
        """Options of a kind; none if the layer is too small for it."""
        if kind == INT4:
            fine = BlockOption(self._unit, _FINE, self._read)
            return [self._option(kind, option, option.error) for option in (self._plain, fine)]
        option = BlockOption(self._unit, _EIGHT if kind == INT8_BLOCKS else _CORRECTED, self._read)
        if kind == INT8_BLOCKS:
            # round to nearest: at 8 bits GPTQ hardly differs
            return [self._option(kind, option, option.estimate)]
        d_out, d_in = self._unit.weight.shape
        return [self._option(kind, option, self._corrected())] if _CORRECTED.rank(d_out, d_in) else []

    def _corrected(self) -> float:
        """The error of 4 bits, less the share of the rounding error that the correction recovers."""
        ((_, plain), *_) = self._plain.layers(final=True)
        if not isinstance(plain, BlockLinear):
            raise TypeError(f"{self._unit.name} in blocks is a {type(plain).__name__}")
        known = self._read()
        lost = whitened_svd(
            self._unit.weight.double() - plain.weight.double(),
            damped(known.second, INPUT_DAMPING),
            damped(known.sensitivity, OUTPUT_DAMPING),
        ).tail()
        left = lost[_CORRECTION_RANK] / lost[0].clamp_min(torch.finfo(lost.dtype).tiny)
        return self._plain.error * float(left)

    def _option(self, kind: str, option: BlockOption, error: float) -> Option:
        d_out, d_in = self._unit.weight.shape
        rank = option.blocks.rank(d_out, d_in)
        return Option(
            kind,
            option.weight_bytes + 4 * d_out * len(self._unit.biases),
            d_in * d_out + rank * (d_in + d_out),
            error,
            partial(_modules, option),
            rank or None,
            _products(option.blocks, d_in, d_out),
            f"blocks of {option.blocks.size(d_in)}",
        )


def known_of(layer: Int8Option) -> Known:
    """The calibration statistics of a layer, computed from the kept moments."""
    sight = layer.candidate.sight
    return Known(sight.second, sight.sensitivities[layer.index], sight.rows.double().mean(0), sight.rows)


def _modules(option: BlockOption) -> Replacements:
    return option.layers(final=True)


def _products(blocks: Blocks, d_in: int, d_out: int) -> tuple[Product, ...]:
    kind = INT4 if blocks.bits == 4 else INT8_BLOCKS
    found = [Product(kind, d_in, d_out, block_size=blocks.size(d_in))]
    rank = blocks.rank(d_out, d_in)
    if rank:
        found.append(Product(INT8_BLOCKS, d_in, rank, block_size=blocks.size(d_in), rounded=False))
        found.append(Product(INT8_BLOCKS, rank, d_out, block_size=blocks.size(rank), rounded=False))
    return tuple(found)
