"""Candidates of a convolution: two convolutions, one of them 1x1, last or first.

See docs/decisions/0073-conversion-of-convolutions.md.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor, nn

from panther.convert.candidates import Candidate, Weighing, weighed_spectrum
from panther.convert.convolutions import Convolution, positions_of
from panther.convert.layers import Unit, bias_of, take_place
from panther.convert.spill import Keeper, Kept
from panther.counting import conv_multiply_adds_per_position
from panther.linalg.channels import Factors
from panther.linalg.whitening import Spectrum, whitened_svd
from panther.nn import SKConv1d, SKConv2d, functional
from panther.nn.functional import ConvOptions
from panther.nn.sketched_conv import SketchedConv

# channels between the two convolutions: runtimes compute blocks of 8
CONV_RANK_STEP = 8


def conv_candidates(unit: Unit, weighing: Weighing | None) -> list[Candidate]:
    """Decompose a convolution in every way that stores less at some rank."""
    ranks, found = conv_ranks(unit), list[Candidate]()
    if "output" in ranks:
        found.append(OutputCandidate(unit, weighing, weighed_spectrum(unit, weighing), ranks["output"]))
    if "input" in ranks:
        found.append(InputCandidate(unit, weighing, _by_channels(unit, weighing), ranks["input"]))
    return found


def conv_ranks(unit: Unit) -> dict[str, tuple[int, ...]]:
    """The ranks at which a convolution stores less, by the way; ways without any are left out."""
    conv, positions = conv_of(unit), positions_of(conv_of(unit))
    d_in, d_out, c_in = unit.in_features, unit.out_features, conv.in_channels
    ways = {"output": (d_in + d_out, min(d_in, d_out))}
    # both ways are the same for a 1x1 convolution
    if positions > 1 and c_in <= d_out * positions:
        ways["input"] = (c_in + d_out * positions, c_in)
    found = {
        way: tuple(range(CONV_RANK_STEP, min(most, (unit.weights - 1) // per_rank) + 1, CONV_RANK_STEP))
        for way, (per_rank, most) in ways.items()
    }
    return {way: ranks for way, ranks in found.items() if ranks}


def conv_of(unit: Unit) -> Convolution:
    """The module of a convolution.

    Raises:
        TypeError: the unit is not a convolution.
    """
    conv = unit.convolution
    if conv is None:
        raise TypeError(f"{unit.name} is not a convolution")
    return conv


class ConvCandidate(Candidate, ABC):
    """Common part of both forms."""

    @property
    def terms(self) -> str:
        """The `terms` of `SKConv2d`."""
        after_S1, after_U2 = self.channels_between(2)
        return "output" if not after_U2 else "input" if not after_S1 else "both"

    @abstractmethod
    def channels_between(self, rank: int) -> tuple[int, int]:
        """After S1s, and after U2s, as `SketchedConv.ranks`."""

    @abstractmethod
    def split(self, rank: int) -> tuple[Factors | None, Factors | None]:
        """The factors, as `SketchedConv.from_factors` takes them."""

    @abstractmethod
    def kernels(self, rank: int) -> tuple[Tensor, Tensor]:
        """The weights of two convolutions in sequence, (rank, C_in, *) and (C_out, rank, *); one of them is 1x1."""

    def stored(self, rank: int) -> tuple[int, int]:
        """Entries that are learned, and those that are fixed, without the bias."""
        conv = conv_of(self.unit)
        after_S1, after_U2 = self.channels_between(rank)
        learned = (after_S1 * conv.in_channels + after_U2 * conv.out_channels) * positions_of(conv)
        return learned, after_S1 * conv.out_channels + after_U2 * conv.in_channels

    def multiply_adds(self, rank: int) -> int:
        """Multiply-adds for a position of the output."""
        conv = conv_of(self.unit)
        channels = conv.in_channels, conv.out_channels
        between = self.channels_between(rank)
        return conv_multiply_adds_per_position(channels, positions_of(conv), between, math.prod(conv.stride))

    def layers(self, rank: int) -> Sequence[SketchedConv]:
        """The sketched convolution."""
        conv = conv_of(self.unit)
        old = bias_of(conv)
        bias = None if old is None else self.bias(old, rank)
        kind = SKConv2d if isinstance(conv, nn.Conv2d) else SKConv1d
        layer = kind.from_factors(conv, *self.split(rank), 1, rank // 2, bias=bias)
        take_place(layer, self.unit, self.unit.places[0])
        return [layer]

    def outputs(self, layer: nn.Module, rows: Tensor) -> Tensor:
        """Outputs of a sketched convolution for patches, (n, d_in)."""
        if not isinstance(layer, SketchedConv):
            raise TypeError(f"{type(layer).__name__} is not a sketched convolution")
        one, none = (1,) * layer.axes, (0,) * layer.axes
        x = rows.view(len(rows), layer.in_channels, *layer.kernel_size)
        options = ConvOptions(one, none, one, 1)
        return functional.sketched_conv(x, layer.all_terms(), layer.bias, layer.num_terms, options).flatten(1)


class OutputCandidate(ConvCandidate):
    """A convolution with the kernel to few channels, then a 1x1 one; of a 1x1 convolution, the terms of `SKLinear`."""

    def channels_between(self, rank: int) -> tuple[int, int]:
        """After S1s, and after U2s."""
        return (rank // 2, rank // 2) if positions_of(conv_of(self.unit)) == 1 else (rank, 0)

    def split(self, rank: int) -> tuple[Factors | None, Factors | None]:
        """The factors, as `SketchedConv.from_factors` takes them."""
        left, right = self.factors(rank)
        if positions_of(conv_of(self.unit)) > 1:
            return (right.t(), left.t()), None
        half = rank // 2
        return (right[half:].t(), left[:, half:].t()), (left[:, :half], right[:half])

    def kernels(self, rank: int) -> tuple[Tensor, Tensor]:
        """The one with the kernel first."""
        conv = conv_of(self.unit)
        left, right = self.factors(rank)
        first = left.t().reshape(rank, conv.in_channels, *conv.kernel_size)
        return first, right.t().reshape(conv.out_channels, rank, *_points(conv))


class InputCandidate(ConvCandidate):
    """A 1x1 convolution to few channels, then one with the kernel.

    Which channels: those that a truncation keeps when the positions of a patch are taken for independent, ``spectrum``,
    of the weight as (C_out·positions, C_in). The convolution behind them is the best for the patches as they are: with
    A of shape (r, C_in) and C the covariance of patches, W C (A⊗I)ᵀ ((A⊗I) C (A⊗I)ᵀ)⁻¹.
    """

    _nested: tuple[Kept, Kept] | None = None

    def keep(self, keeper: Keeper) -> None:
        """Leave the factors to a keeper, see `Candidate.keep`."""
        if self.weighing is not None and self.weighing.inputs is not None:
            most = self.ranks[-1] * positions_of(conv_of(self.unit))
            nested = keeper.store(self._root[:most, :most].clone()), keeper.store(self._captured[:, :most].clone())
            del self._root, self._captured
            self._nested = nested
        super().keep(keeper)

    def channels_between(self, rank: int) -> tuple[int, int]:
        """After S1s, and after U2s."""
        return 0, rank

    def tail(self) -> Tensor:
        """The squared error of every rank from 0 on."""
        weighing = self.weighing
        if weighing is None or weighing.inputs is None:
            return self.spectrum.tail()
        W, kept = self.unit.weight.double(), self._captured
        energy = W @ weighing.inputs @ W.t()
        if weighing.outputs is None:
            whole = energy.diagonal().sum()
        else:
            whole, kept = (energy * weighing.outputs).sum(), torch.linalg.cholesky(weighing.outputs).t() @ kept
        by_rank = kept.square().sum(0).view(-1, positions_of(conv_of(self.unit))).sum(1).cumsum(0)
        left = (whole - torch.cat([by_rank.new_zeros(1), by_rank])).clamp_min(0)
        return left if weighing.outputs is not None else left / whole.clamp_min(torch.finfo(left.dtype).tiny)

    def lost(self, rank: int) -> Tensor:
        """(d_out, d_in), W - Ŵ."""
        A, second = self._down(rank)
        return self.unit.weight.double() - torch.einsum("orp,cr->ocp", second, A).flatten(1)

    def split(self, rank: int) -> tuple[Factors | None, Factors | None]:
        """The factors, as `SketchedConv.from_factors` takes them."""
        A, second = self._down(rank)
        return None, (A, second.transpose(0, 1).flatten(1))

    def kernels(self, rank: int) -> tuple[Tensor, Tensor]:
        """The 1x1 one first."""
        conv = conv_of(self.unit)
        A, second = self._down(rank)
        first = A.t().reshape(rank, conv.in_channels, *_points(conv))
        return first, second.reshape(conv.out_channels, rank, *conv.kernel_size)

    def _down(self, rank: int) -> tuple[Tensor, Tensor]:
        """(C_in, rank), and (C_out, rank, positions)."""
        A, positions = self.spectrum.left[:, :rank], positions_of(conv_of(self.unit))
        if self._nested is None and (self.weighing is None or self.weighing.inputs is None):
            second = self.spectrum.right[:rank].view(rank, -1, positions).transpose(0, 1)
            return A, second
        entries = rank * positions
        root, captured = (self._root, self._captured) if self._nested is None else (m.load() for m in self._nested)
        flat = torch.linalg.solve_triangular(root[:entries, :entries], captured[:, :entries], upper=False, left=False)
        return A, flat.view(-1, rank, positions)

    @cached_property
    def _root(self) -> Tensor:
        """R, lower triangular, with R Rᵀ = (A⊗I) C (A⊗I)ᵀ for all channels of A."""
        through = self._through(self._covariance())
        R: Tensor = torch.linalg.cholesky(self._through(through.t()))
        return R

    @cached_property
    def _captured(self) -> Tensor:
        """W C (A⊗I)ᵀ R⁻ᵀ, (C_out, p·positions): what each further channel adds, orthogonal to those before."""
        WC = self.unit.weight.double() @ self._covariance()
        WCA = self._through(WC.t()).t()
        captured: Tensor = torch.linalg.solve_triangular(self._root.t(), WCA, upper=True, left=False)
        return captured

    def _through(self, M: Tensor) -> Tensor:
        """(A⊗I) M for M of shape (C_in·positions, n)."""
        conv = conv_of(self.unit)
        by_channel = M.reshape(conv.in_channels, -1)
        return (self.spectrum.left.t() @ by_channel).view(-1, M.shape[1])

    def _covariance(self) -> Tensor:
        if self.weighing is None or self.weighing.inputs is None:
            raise ValueError("no calibration")
        return self.weighing.inputs


def _points(conv: Convolution) -> tuple[int, ...]:
    return (1,) * len(conv.kernel_size)


def _by_channels(unit: Unit, weighing: Weighing | None) -> Spectrum:
    """The weight as (C_out·positions, C_in), whitened by the channels of the patches at all positions together."""
    conv = conv_of(unit)
    positions = positions_of(conv)
    shape = (conv.in_channels, positions)
    W = unit.weight.double().reshape(-1, *shape)
    if weighing is not None and weighing.outputs is not None:
        W = torch.einsum("qo,qcp->ocp", torch.linalg.cholesky(weighing.outputs), W)
    C = None
    if weighing is not None and weighing.inputs is not None:
        C = weighing.inputs.view(*shape, *shape).diagonal(dim1=1, dim2=3).mean(-1)
    spectrum = whitened_svd(W.transpose(1, 2).flatten(0, 1), C)
    if weighing is not None and weighing.outputs is not None:
        return spectrum
    energies = spectrum.energies / spectrum.energies.sum().clamp_min(torch.finfo(torch.float64).tiny)
    return Spectrum(spectrum.left, spectrum.right, energies)
