"""Options of a plan: convolutions stored in few bits.

See docs/decisions/0089-convolutions-in-8-bits.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor, nn

from panther.convert.convolutions import Convolution, reason_not_factored
from panther.convert.layers import Place, Unit, bias_of
from panther.convert.moments import Moments
from panther.nn.hooks import take_hooks
from panther.nn.quantized import Int4Kernel, Int8Kernel, StoredConv, StoredKernel
from panther.quantize.candidates import sensitivity
from panther.quantize.kernels import four_bits
from panther.quantize.loss import weighed_loss

_UNSEEN = "never called in calibration: its weight may be read as a tensor, or it isn't used"


@dataclass(frozen=True)
class Patches:
    """Calibration statistics of a convolution.

    Attributes:
        second: (entries, entries), the second moment of its patches.
        outputs: (C_out, C_out), the sensitivity of the model's outputs.
        mean: (entries,), the mean of its patches.
    """

    second: Tensor
    outputs: Tensor
    mean: Tensor


@dataclass(frozen=True)
class StoredOption:
    """A convolution whose weight is stored in 8 or 4 bits and computes in float32.

    Attributes:
        unit: the layer.
        bits: 8 or 4.
        read: computes the calibration statistics from the kept moments; None for a convolution with groups, whose
            errors are not predicted.
    """

    unit: Unit
    bits: int
    read: Callable[[], Patches] | None

    @property
    def precision(self) -> str:
        """Name in reports."""
        return f"int{self.bits}"

    @property
    def alpha(self) -> float | None:
        """Strength of the smoothing: none."""
        return None

    @property
    def reason(self) -> str:
        """The format in words."""
        blocks = f"blocks of {self._kernel.block_size}" if isinstance(self._kernel, Int4Kernel) else "a scale a channel"
        return f"{blocks}, unpacked to float32 when it is loaded"

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weight and its scales."""
        return self._kernel.stored_bytes

    @property
    def estimate(self) -> float:
        """The relative squared error of the model's outputs."""
        return self.error

    @cached_property
    def error(self) -> float:
        """Error of the finished layer; with groups, the relative error of its weight."""
        W, rounded = self.unit.weight.double(), self._kernel.weight.flatten(1).double()
        if self.read is None:
            whole = W.square().sum().clamp_min(torch.finfo(W.dtype).tiny)
            return float((W - rounded).square().sum() / whole)
        patches = self.read()
        return weighed_loss(W - rounded, patches.outputs, patches.second)

    @cached_property
    def _kernel(self) -> StoredKernel:
        weight = self._conv.weight.detach()
        if self.bits == 8:
            return Int8Kernel.nearest(weight)
        if self.read is None:
            return four_bits(weight)
        known = self.read()
        return four_bits(weight, known.second, known.outputs)

    @property
    def _conv(self) -> Convolution:
        conv = self.unit.convolution
        if conv is None:
            raise TypeError(f"{self.unit.name} is not a convolution")
        return conv

    def layers(self, *, final: bool) -> list[tuple[Place, nn.Module]]:  # noqa: ARG002
        """The layer, its bias b + (W - Ŵ) μ for patches of mean μ."""
        place, conv = self.unit.places[0], self._conv
        layer = StoredConv(conv, self._kernel, bias=bias_of(conv))
        if layer.bias is not None and self.read is not None:
            lost = self.unit.weight.double() - self._kernel.weight.flatten(1).double()
            layer.bias.data += (lost @ self.read().mean).float()
        take_hooks(layer, conv)
        return [(place, layer)]


def storable(unit: Unit) -> bool:
    """Whether a convolution's weight can be stored in few bits; groups exclude only low rank."""
    conv = unit.convolution
    return conv is not None and (unit.reason is None or unit.reason == reason_not_factored(conv))


def stored_options(
    units: Sequence[Unit], moments: Mapping[int, Moments], examples: int, bits: Sequence[int]
) -> list[tuple[StoredOption, ...]]:
    """Options of every convolution that can be stored in few bits; the others get a reason.

    Args:
        units: convolutions.
        moments: calibration sums by the id of a unit, without those of convolutions with groups.
        examples: number of rows in calibration.
        bits: 8, 4 or both, in the order in which they are tried.
    """
    found = []
    for unit in units:
        if not storable(unit):
            continue
        seen = moments.get(id(unit))
        if seen is not None and not seen.rows:
            unit.reason = _UNSEEN
            continue
        unit.reason = None
        read = None if seen is None else partial(_patches, unit, seen, examples)
        found.append(tuple(StoredOption(unit, each, read) for each in bits))
    return found


def _patches(unit: Unit, seen: Moments, examples: int) -> Patches:
    second = seen.covariance(centred=False)
    return Patches(second, sensitivity(seen, unit.weight.double(), second, examples), seen.mean)
