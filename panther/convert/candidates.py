"""Candidates of a layer: its decomposed weight, with the cost and the error of every rank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from panther.convert.layers import Unit, bias_of, sketched_from
from panther.convert.moments import Moments
from panther.convert.spill import Keeper, Kept
from panther.counting import multiply_adds_per_row
from panther.linalg.whitening import Spectrum, damped, whitened_svd

# Damping, as shares of the mean variance that are added to every direction of a layer's inputs and outputs, and the
# extra damping per direction and row: moments of few rows are uncertain.
INPUT_DAMPING = 1e-4
OUTPUT_DAMPING = 1e-2
DAMPING_FOR_FEW_ROWS = 0.1
_TINY = torch.finfo(torch.float64).tiny


@dataclass(frozen=True)
class Weighing:
    """Calibration statistics of a unit, prepared to weigh errors.

    Attributes:
        covariance: (d_in, d_in) of its inputs, about their mean where its bias can take that up.
        mean: (d_in,), the mean of its inputs; None if no bias can absorb it.
        inputs, outputs: the damped covariance and sensitivity; None if they are zero or unknown.
        extreme: (n, d_in), the calibration rows of the largest entries.
    """

    covariance: Tensor
    mean: Tensor | None
    inputs: Tensor | None
    outputs: Tensor | None
    extreme: Tensor | None


def weigh(unit: Unit, moments: Moments) -> Weighing:
    """Damp the moments of a unit, more for few rows."""
    # only a bias of every module, shared with no other, can absorb the mean
    own_biases = all(place.module.bias is not None for place in unit.places) and not unit.bias_is_shared
    centred = len(unit.biases) > 0 and own_biases
    covariance = moments.covariance(centred=centred)
    few = DAMPING_FOR_FEW_ROWS / moments.rows
    # with few rows the variance about the mean is underestimated; the mean square is not
    mean_square = moments.second.diagonal().mean() / moments.rows
    inputs = damped(covariance, INPUT_DAMPING, more=few * unit.in_features * mean_square)
    # read once: it may be loaded from a file
    outputs = sensitivity = moments.sensitivity
    if sensitivity is not None:
        # each entry of a diagonal is known by itself
        directions = unit.out_features if sensitivity.dim() == 2 else 0
        outputs = damped(sensitivity, OUTPUT_DAMPING + few * directions)
    return Weighing(covariance, moments.mean if centred else None, inputs, outputs, moments.extreme)


def weighed_spectrum(unit: Unit, weighing: Weighing | None) -> Spectrum:
    """The decomposed weight of a unit, (d_out, d_in).

    Energies are in units of the model's relative squared output error, or of the weight's (the layer's output's) own
    where there is no calibration (no sensitivity).
    """
    if weighing is None:
        spectrum = whitened_svd(unit.weight)
    else:
        spectrum = whitened_svd(unit.weight, weighing.inputs, weighing.outputs)
        if weighing.outputs is not None:
            return spectrum
    energies = spectrum.energies / spectrum.energies.sum().clamp_min(_TINY)
    return Spectrum(spectrum.left, spectrum.right, energies)


class KeptSpectrum(Spectrum):
    """A spectrum with the factors at a keeper: each is loaded when it is read."""

    def __init__(self, left: Kept, right: Kept, energies: Tensor) -> None:
        object.__setattr__(self, "_factors", (left, right))
        object.__setattr__(self, "energies", energies)

    _factors: tuple[Kept, Kept]

    @property
    def left(self) -> Tensor:
        """(d_in, p)."""
        return self._factors[0].load()

    @property
    def right(self) -> Tensor:
        """(p, d_out)."""
        return self._factors[1].load()


@dataclass(eq=False)
class Candidate:
    """A convertible linear layer with its decomposed weight.

    Attributes:
        unit: the layer.
        weighing: its calibration statistics; None without calibration.
        spectrum: as `weighed_spectrum`.
        ranks: that pay, rising.
    """

    unit: Unit
    weighing: Weighing | None
    spectrum: Spectrum
    ranks: tuple[int, ...]

    def keep(self, keeper: Keeper) -> None:
        """Leave the factors to a keeper, and drop the covariances: `errors` and `tail` can't be read afterwards."""
        left, right, most = self.spectrum.left, self.spectrum.right, self.ranks[-1]
        self.spectrum = KeptSpectrum(keeper.store(left[:, :most]), keeper.store(right[:most]), self.spectrum.energies)
        self._drop_covariances()

    def _drop_covariances(self) -> None:
        if self.weighing is not None:
            mean, extreme = self.weighing.mean, self.weighing.extreme
            self.weighing = Weighing(self.spectrum.energies.new_empty(0), mean, None, None, extreme)

    def stored(self, rank: int) -> tuple[int, int]:
        """Entries that are learned, and those that are fixed, without the bias."""
        half = rank // 2 * (self.unit.in_features + self.unit.out_features)
        return half, half

    def multiply_adds(self, rank: int) -> int:
        """Multiply-adds for a row."""
        return multiply_adds_per_row(self.unit.in_features, self.unit.out_features, 1, rank // 2)

    def tail(self) -> Tensor:
        """The squared error of every rank from 0 on."""
        return self.spectrum.tail()

    def factors(self, rank: int) -> tuple[Tensor, Tensor]:
        """(d_in, rank) and (rank, d_out), float64."""
        return self.spectrum.left[:, :rank], self.spectrum.right[:rank]

    def lost(self, rank: int) -> Tensor:
        """(d_out, d_in), W - Ŵ."""
        left, right = self.factors(rank)
        return self.unit.weight.double() - (left @ right).t()

    def bias(self, bias: Tensor, rank: int) -> Tensor:
        """The bias that keeps the mean of the outputs: b + (W - Ŵ) μ."""
        if self.weighing is None or self.weighing.mean is None:
            return bias.detach()
        return (bias.detach().double() + self.lost(rank) @ self.weighing.mean).to(bias.dtype)

    def errors(self, rank: int) -> tuple[float, float | None]:
        """The relative errors in the weight and on the data."""
        W, lost = self.unit.weight.double(), self.lost(rank)
        on_data = None
        if self.weighing is not None:
            C = self.weighing.covariance
            on_data = _ratio(_energy(lost, C), _energy(W, C)) ** 0.5
        return _ratio(lost.square().sum(), W.square().sum()) ** 0.5, on_data

    def layers(self, rank: int) -> Sequence[nn.Module]:
        """The sketched layers, one for each module that is replaced."""
        left, right = self.factors(rank)
        biases: dict[int, Tensor | None] = {id(bias): self.bias(bias, rank) for bias in self.unit.biases}
        extreme = None if self.weighing is None else self.weighing.extreme
        largest = None if extreme is None else extreme.abs().amax(0)
        return sketched_from(self.unit, left, right, biases, largest_input=largest)

    def outputs(self, layer: nn.Module, rows: Tensor) -> Tensor:
        """Outputs of a sketched layer for rows, (n, d_in)."""
        y: Tensor = layer(rows)
        return y

    @torch.no_grad()
    def overflows(self, rank: int) -> bool:
        """Whether the layer overflows its type where the dense one does not.

        Only 16-bit types are checked: their factors, and the outputs for the calibration rows of the largest
        entries.
        """
        weight = self.unit.weight
        if weight.dtype.itemsize > 2:
            return False
        layer = self.layers(rank)[0]
        if not all(bool(tensor.isfinite().all()) for tensor in layer.state_dict().values()):
            return True
        if self.weighing is None or self.weighing.extreme is None:
            return False
        rows = self.weighing.extreme
        dense = nn.functional.linear(rows, weight, bias_of(self.unit.places[0].module))
        return bool((dense.isfinite() & ~self.outputs(layer, rows).isfinite()).any())


def _energy(W: Tensor, C: Tensor) -> Tensor:
    """‖X Wᵀ‖² for XᵀX = C."""
    return ((W @ C) * W).sum()


def _ratio(part: Tensor, whole: Tensor) -> float:
    return (part / whole).clamp_min(0).item() if whole > 0 else 0.0
