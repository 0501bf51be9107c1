"""Options of convolutions: float, weights stored in 8 or 4 bits, low rank, and low rank in few bits.

See docs/decisions/0089-convolutions-in-8-bits.md.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from torch import Tensor, nn

from panther.compression.options import (
    FLOAT,
    INT4,
    INT8,
    LOW_RANK,
    LOW_RANK_INT4,
    LOW_RANK_INT8,
    Convolved,
    ConvStep,
    Option,
    Part,
    Replacements,
    unchanged,
)
from panther.compression.ranks import between, spread
from panther.convert.candidates import weigh
from panther.convert.conv_candidates import ConvCandidate, conv_candidates, conv_of, conv_ranks
from panther.convert.convolutions import Convolution, reason_not_factored
from panther.convert.deviation import Reference
from panther.convert.layers import Unit, bias_of
from panther.convert.moments import Moments
from panther.convert.spill import Keeper
from panther.convert.swap import Swap
from panther.nn.hooks import take_hooks
from panther.nn.padding import padding_sides
from panther.nn.quantized import Int4Kernel, Int8Kernel, StoredConv, StoredKernel
from panther.quantize.candidates import sensitivity
from panther.quantize.kernels import four_bits, stored_bytes
from panther.quantize.loss import weighed_loss

# ranks that are rounded to measure the cost of 8 bits; costs between them are interpolated
_ROUNDED_RANKS = 2


class ConvolutionOptions:
    """Finds the options of every convolution.

    Args:
        model: the model in eval mode; every method leaves it unchanged.
        units: its convolutions, with the reason if one can't be of low rank.
        moments: calibration sums by the id of a unit.
        keeper: stores decomposed weights.
        reference: outputs of the original model.
        examples: number of rows of the reference.
        kinds: the requested options.
    """

    def __init__(
        self,
        model: nn.Module,
        units: Sequence[Unit],
        moments: Mapping[int, Moments],
        keeper: Keeper,
        reference: Reference,
        examples: int,
        kinds: Sequence[str],
    ) -> None:
        self._model, self._units, self._moments, self._kinds = model, units, moments, kinds
        self._keeper = keeper
        self._reference, self._examples = reference, examples

    def parts(self, step: Callable[[str, int, int], None]) -> list[Part]:
        """Every convolution with its options.

        Args:
            step: called with (what, done, all).
        """
        found = []
        for done, unit in enumerate(self._units):
            conv = conv_of(unit)
            options, reason = [_float(unit, conv)], unit.reason
            seen = self._moments.get(id(unit))
            if stored_alone(unit):
                options += self._measured(unit, conv)
            elif reason is None and seen is not None:
                reason = _unseen(seen) or (None if bool(unit.weight.any()) else "its weight is zero")
                options += [] if reason else self._options(unit, conv, seen)
            if len(options) == 1 and reason is None:
                reason = "none of kinds applies to a convolution"
            shape = (unit.out_features, unit.in_features)
            names = tuple(unit.places[0].names)
            found.append(
                Part(unit.name, names, "convolution", shape, tuple(options), reason if len(options) == 1 else None)
            )
            step("weighing convolutions", done + 1, len(self._units))
        return found

    def _options(self, unit: Unit, conv: Convolution, seen: Moments) -> list[Option]:
        weighing, W = weigh(unit, seen), unit.weight.double()
        G = sensitivity(seen, W, seen.covariance(centred=False), self._examples)

        def rounding(exact: Tensor, rounded: Tensor) -> float:
            return weighed_loss((exact - rounded.double()).flatten(1), G, weighing.covariance)

        found = []
        if INT8 in self._kinds:
            kernel = Int8Kernel.nearest(unit.weight.view(conv.weight.shape))
            error = rounding(W, kernel.weight.flatten(1))
            found.append(_stored(INT8, unit, conv, kernel, error, weighing.mean))
        if INT4 in self._kinds:
            four = four_bits(unit.weight.view(conv.weight.shape), weighing.covariance, G)
            error = rounding(W, four.weight.flatten(1))
            found.append(_stored(INT4, unit, conv, four, error, weighing.mean))
        if not {LOW_RANK, LOW_RANK_INT8, LOW_RANK_INT4} & set(self._kinds) or not conv_ranks(unit):
            return found
        for candidate in conv_candidates(unit, weighing):
            if isinstance(candidate, ConvCandidate):
                found += self._of_low_rank(candidate, conv, seen, rounding)
                candidate.keep(self._keeper)
        return found

    def _of_low_rank(
        self, candidate: ConvCandidate, conv: Convolution, seen: Moments, rounding: Callable[[Tensor, Tensor], float]
    ) -> list[Option]:
        unit, every = candidate.unit, spread(candidate.ranks)
        # energies with derivatives are summed over all examples
        tail = candidate.tail() / (1 if not seen.derivatives else max(self._examples, 1))
        tried, found = spread(every, _ROUNDED_RANKS), list[Option]()
        dense = [unit.weight.double() - candidate.lost(rank) for rank in tried]
        bias = len(unit.biases) * unit.out_features
        shapes = {rank: [tuple(kernel.shape) for kernel in candidate.kernels(rank)] for rank in every}
        steps = {rank: _steps(conv, shapes[rank]) for rank in every}
        for rank in every:
            if LOW_RANK in self._kinds and not candidate.overflows(rank):
                size = (sum(candidate.stored(rank)) + bias) * unit.element_bytes
                make = partial(_sketched, candidate, rank)
                adds, error = candidate.multiply_adds(rank), tail[rank].item()
                found.append(Option(LOW_RANK, size, adds, error, make, rank, (steps[rank],)))
        for kind, nearest in ((LOW_RANK_INT8, Int8Kernel.nearest), (LOW_RANK_INT4, four_bits)):
            if kind not in self._kinds:
                continue
            pairs = {rank: _pair(candidate, conv, rank, nearest) for rank in tried}
            excess = [rounding(W, pairs[rank].dense_weight().flatten(1)) for W, rank in zip(dense, tried, strict=True)]
            for rank in every:
                size = 4 * bias + sum(map(_int8_bytes if kind == LOW_RANK_INT8 else stored_bytes, shapes[rank]))
                make = partial(_replaced, unit, partial(_pair, candidate, conv, rank, nearest))
                error = tail[rank].item() + between(rank, tried, excess)
                adds = candidate.multiply_adds(rank)
                found.append(Option(kind, size, adds, error, make, rank, (steps[rank],)))
        return found

    def _measured(self, unit: Unit, conv: Convolution) -> list[Option]:
        """A convolution with groups in few bits; the error is measured on the model with only this layer replaced."""
        if unit.weight.is_meta:
            return []
        weight, options = unit.weight.view(conv.weight.shape), list[Option]()
        for kind, make in ((INT8, Int8Kernel.nearest), (INT4, four_bits)):
            if kind in self._kinds:
                option = _stored(kind, unit, conv, make(weight), 0.0)
                with Swap(self._model, option.make()):
                    error = self._reference.deviation(self._model).error ** 2
                options.append(dataclasses.replace(option, error=error))
        return options


def stored_alone(unit: Unit) -> bool:
    """Whether a convolution's weight can be stored in few bits, although low rank is excluded."""
    return unit.reason is not None and unit.reason == reason_not_factored(conv_of(unit))


def _unseen(seen: Moments) -> str | None:
    if not seen.calls:
        return "never called in calibration: its weight may be read as a tensor, or it isn't used"
    return None if seen.rows else "no output depends on it in calibration, so its error can't be weighed"


def _float(unit: Unit, conv: Convolution) -> Option:
    products = (_steps(conv, [tuple(conv.weight.shape)]),)
    size = unit.dense_parameters * unit.element_bytes
    return Option(FLOAT, size, unit.weights, 0.0, unchanged, products=products)


def _stored(
    kind: str, unit: Unit, conv: Convolution, kernel: StoredKernel, error: float, mean: Tensor | None = None
) -> Option:
    make = partial(_replaced, unit, partial(_with_mean_kept, unit, StoredConv(conv, kernel, bias=bias_of(conv)), mean))
    size = kernel.stored_bytes + 4 * unit.out_features * len(unit.biases)
    detail = f"blocks of {kernel.block_size}" if isinstance(kernel, Int4Kernel) else ""
    products = (_steps(conv, [tuple(conv.weight.shape)]),)
    return Option(kind, size, unit.weights, error, make, products=products, detail=detail)


def _pair(
    candidate: ConvCandidate, conv: Convolution, rank: int, nearest: Callable[[Tensor], StoredKernel]
) -> StoredConv:
    first, second = (nearest(kernel) for kernel in candidate.kernels(rank))
    layer = StoredConv(conv, first, second, bias=bias_of(conv))
    return _with_mean_kept(candidate.unit, layer, None if candidate.weighing is None else candidate.weighing.mean)


def _with_mean_kept(unit: Unit, layer: StoredConv, mean: Tensor | None) -> StoredConv:
    """The layer, its bias b + (W - Ŵ) μ for patches of mean μ; as it is where no bias can take that up."""
    bias = bias_of(unit.places[0].module)
    if mean is not None and layer.bias is not None and bias is not None:
        lost = unit.weight.double() - layer.weight.flatten(1).double()
        layer.bias.data = (bias.detach().double() + lost @ mean).float()
    return layer


def _int8_bytes(shape: tuple[int, ...]) -> int:
    return math.prod(shape) + 4 * shape[0]


def _replaced(unit: Unit, make: Callable[[], StoredConv]) -> Replacements:
    place, layer = unit.places[0], make()
    take_hooks(layer, place.module)
    return [(place, layer)]


def _sketched(candidate: ConvCandidate, rank: int) -> Replacements:
    return list(zip(candidate.unit.places, candidate.layers(rank), strict=True))


def _steps(conv: Convolution, shapes: Sequence[tuple[int, ...]]) -> Convolved:
    """The convolutions by weights of these shapes; the first that has the kernel has the options of the layer."""
    axes = len(conv.kernel_size)
    whole = next(i for i, shape in enumerate(shapes) if shape[2:] == tuple(conv.kernel_size))
    sides, points = padding_sides(conv), (1,) * axes
    pads = (*(before for before, _ in sides), *(after for _, after in sides))
    return Convolved(
        tuple(
            ConvStep(shape, conv.stride, conv.dilation, pads, conv.groups)
            if i == whole
            else ConvStep(shape, points, points, (0,) * 2 * axes)
            for i, shape in enumerate(shapes)
        )
    )
