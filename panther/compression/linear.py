"""Options of linear layers: float, 8 bits, low rank, low rank in 8 bits, and blocks of few bits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from panther.compression.blocks import BlockOptions
from panther.compression.factors import FactorOptions
from panther.compression.options import (
    FLOAT,
    IN_BLOCKS,
    INT8,
    LOW_RANK,
    LOW_RANK_INT4,
    LOW_RANK_INT8,
    Option,
    Part,
    Product,
    unchanged,
)
from panther.compression.ranks import between, spread
from panther.convert import plan as ranks
from panther.convert.allocate import possible_ranks
from panther.convert.candidates import DAMPING_FOR_FEW_ROWS, INPUT_DAMPING, Candidate
from panther.convert.deviation import Reference
from panther.convert.layers import Place, Unit, bias_of
from panther.convert.moments import Moments
from panther.convert.spill import Keeper
from panther.linalg.whitening import damped, weighted
from panther.quantize import low_rank
from panther.quantize.api import ALPHAS
from panther.quantize.candidates import Int8Option, candidates
from panther.quantize.embeddings import Table
from panther.quantize.observe import Observed
from panther.quantize.plan import Quantizer

# rank step of factors in 8 bits; sketched layers have multiples of 16
_LEAST_RANK = 8
# ranks that are rounded to measure the cost of 8 bits; costs between them are interpolated
_ROUNDED_RANKS = 3


@dataclass(frozen=True)
class Calibrated:
    """Calibration statistics of a model.

    Attributes:
        moments: calibration sums by the id of a unit.
        keeper: stores what is derived from them.
        seen: samples of the inputs of layers, and which of them read one tensor.
        reference: outputs of the original model.
        notes: for the report, on the memory of the calibration.
    """

    moments: Mapping[int, Moments]
    keeper: Keeper
    seen: Observed
    reference: Reference
    notes: tuple[str, ...] = ()


class LinearOptions:
    """Finds the options of every linear layer.

    Args:
        model: the model in eval mode; every method leaves it unchanged.
        units: its linear layers; layers that can't be changed get a reason.
        tables: its embeddings, which are in 8 bits while strengths of smoothing are compared.
        calibrated: their calibration statistics.
        kinds: the requested options.
        step: called with (what, done, all).
    """

    def __init__(
        self,
        model: nn.Module,
        units: Sequence[Unit],
        tables: Sequence[Table],
        calibrated: Calibrated,
        kinds: Sequence[str],
        step: Callable[[str, int, int], None],
    ) -> None:
        self._units, self._calibrated, self._kinds, self._step = units, calibrated, kinds, step
        active = [unit for unit in units if unit.reason is None]
        found = candidates(active, calibrated.moments, calibrated.seen, ALPHAS, step)
        self._int8: dict[int, Int8Option] = {}
        if found:
            # one smoothing strength per layer, or one for all, whichever has the smaller error
            quantizer = Quantizer(model, tables if INT8 in kinds else (), calibrated.reference, step)
            smoothing = quantizer.best_smoothing(found, ALPHAS)
            every = [option for each in smoothing.decisions for option in each.options]
            self._int8 = {id(option.unit): option for option in every if isinstance(option, Int8Option)}
        self._spectra: dict[int, Candidate] = {}
        if {LOW_RANK, LOW_RANK_INT8, LOW_RANK_INT4} & set(kinds):
            wide = [
                unit for unit in units if unit.reason is None and possible_ranks(unit.in_features, unit.out_features)
            ]
            for done, unit in enumerate(wide):
                for candidate in ranks.ways(unit, calibrated.moments[id(unit)], ""):
                    candidate.keep(calibrated.keeper)
                    self._spectra[id(unit)] = candidate
                step("factorizing", done + 1, len(wide))

    def parts(self) -> list[Part]:
        """Every linear layer with its options."""
        found = []
        for done, unit in enumerate(self._units):
            options = [_float(unit)]
            if unit.reason is None:
                options += self._options(unit)
                self._step("weighing options", done + 1, len(self._units))
            names = tuple(name for place in unit.places for name in place.names)
            shape = (unit.out_features, unit.in_features)
            reason = unit.reason if len(options) == 1 else None
            if len(options) == 1 and reason is None:
                reason = "no rank that is a multiple of 16 stores fewer parameters"
            found.append(Part(unit.name, names, "linear", shape, tuple(options), reason))
        return found

    def _options(self, unit: Unit) -> list[Option]:
        layer, spectrum = self._int8[id(unit)], self._spectra.get(id(unit))
        found = []
        if INT8 in self._kinds:
            found.append(_int8(layer))
        in_blocks = BlockOptions(layer)
        for kind in IN_BLOCKS:
            if kind in self._kinds:
                found += in_blocks.of(kind)
        if spectrum is None:
            return found
        every = spread(spectrum.ranks)
        if LOW_RANK in self._kinds:
            found += [self._low_rank(spectrum, rank) for rank in every if not spectrum.overflows(rank)]
        if LOW_RANK_INT8 in self._kinds:
            found += self._low_rank_int8(layer, spectrum, [_LEAST_RANK, *every])
        if LOW_RANK_INT4 in self._kinds:
            found += FactorOptions(layer, spectrum, self._tail(spectrum)).of(every)
        return found

    def _tail(self, spectrum: Candidate) -> Tensor:
        """Error of truncation at each rank, as `Option.error`."""
        tail = spectrum.spectrum.tail()
        # energies with derivatives are summed over all examples
        moments = self._calibrated.moments[id(spectrum.unit)]
        return tail if not moments.derivatives else tail / max(self._calibrated.seen.examples, 1)

    def _low_rank(self, spectrum: Candidate, rank: int) -> Option:
        unit = spectrum.unit
        d_in, d_out = unit.in_features, unit.out_features
        stored = rank * (d_in + d_out) + unit.dense_parameters - unit.weights
        return Option(
            LOW_RANK,
            stored * unit.element_bytes,
            rank * (d_in + d_out),
            self._tail(spectrum)[rank].item(),
            partial(_sketched, spectrum, rank),
            rank,
            (Product(FLOAT, d_in, rank), Product(FLOAT, rank, d_out)),
        )

    def _low_rank_int8(self, layer: Int8Option, spectrum: Candidate, every: Sequence[int]) -> list[Option]:
        known = self._layer(layer, spectrum)
        unit, tail = layer.unit, self._tail(spectrum)
        d_in, d_out = unit.in_features, unit.out_features
        smoothed = layer.choice.smoothing is not None
        tried = spread(every, _ROUNDED_RANKS)
        excess = [sampled_error(known, spectrum.factors(rank)[0]) - tail[rank].item() for rank in tried]
        found = []
        for rank in every:
            error = tail[rank].item() + max(between(rank, tried, excess), 0.0)
            stored = rank * (d_in + d_out) + 4 * (rank + d_out) + 10 + 4 * d_in * smoothed
            found.append(
                Option(
                    LOW_RANK_INT8,
                    stored + 4 * d_out * len(unit.biases),
                    rank * (d_in + d_out),
                    error,
                    partial(self._factorized, layer, spectrum, rank),
                    rank,
                    (Product(INT8, d_in, rank, smoothed), Product(INT8, rank, d_out)),
                )
            )
        return found

    def _factorized(self, layer: Int8Option, spectrum: Candidate, rank: int) -> list[tuple[Place, nn.Module]]:
        known = self._layer(layer, spectrum)
        return list(low_rank.modules(known, low_rank.factorize(known, spectrum.factors(rank)[0], compensate=True)))

    def _layer(self, layer: Int8Option, spectrum: Candidate) -> low_rank.Layer:
        unit, moments = layer.unit, self._calibrated.moments[id(layer.unit)]
        sight = layer.candidate.sight
        covariance = moments.covariance(centred=spectrum.weighing is not None and spectrum.weighing.mean is not None)
        few = DAMPING_FOR_FEW_ROWS * unit.in_features / max(moments.rows, 1)
        solvable = damped(covariance, INPUT_DAMPING + few)
        extreme = sight.rows[:0] if moments.extreme is None else moments.extreme
        known = covariance if solvable is None else solvable
        return low_rank.Layer(unit, sight, layer.index, layer.choice, known, extreme)


@torch.no_grad()
def sampled_error(layer: low_rank.Layer, left: Tensor) -> float:
    """The predicted relative squared error of the model's outputs, from the layer's error on the sampled rows."""
    ((_, made), *_) = low_rank.modules(layer, low_rank.factorize(layer, left, compensate=False))
    X, bias = layer.sight.rows, bias_of(layer.unit.places[0].module)
    lost = nn.functional.linear(X, layer.weight.float(), None if bias is None else bias.float()) - made(X)
    G = layer.sight.sensitivities[layer.index].float()
    return float((weighted(G, lost.t()) * lost.t()).sum(dtype=torch.float64) / max(len(X), 1))


def _float(unit: Unit) -> Option:
    product = Product(FLOAT, unit.in_features, unit.out_features)
    return Option(FLOAT, unit.dense_parameters * unit.element_bytes, unit.weights, 0.0, unchanged, products=(product,))


def _int8(layer: Int8Option) -> Option:
    unit, smoothed = layer.unit, layer.choice.smoothing is not None
    d_in, d_out = unit.in_features, unit.out_features
    stored = layer.weight_bytes + 4 * d_out * len(unit.biases)
    make = partial(layer.layers, final=True)
    return Option(INT8, stored, unit.weights, layer.error, make, products=(Product(INT8, d_in, d_out, smoothed),))


def _sketched(spectrum: Candidate, rank: int) -> list[tuple[Place, nn.Module]]:
    return list(zip(spectrum.unit.places, spectrum.layers(rank), strict=True))
