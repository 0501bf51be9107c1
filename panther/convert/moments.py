"""Sums over the rows that a layer saw in calibration: second moments, and the sensitivity of the outputs to it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from panther.convert.embeddings import Lookups, is_embedding
from panther.convert.errors import ConversionError
from panther.convert.layers import Unit, weight_of
from panther.convert.spill import Keeper
from panther.linalg.gram import times

# A wider layer is usually the head of a vocabulary or of many classes. The whole matrix takes 8 GB for 32,000 outputs,
# and several copies are needed.
MOST_OUTPUTS = 16_384


class Sums(Protocol):
    """Sums over the rows that a layer saw: `Moments`, or `panther.convert.statistics.Statistics`.

    Attributes:
        calls, extreme, sensitivity: as of `Moments`.
    """

    calls: int
    extreme: Tensor | None
    sensitivity: Tensor | None

    @property
    def at_inputs(self) -> bool:
        """Whether it sums derivatives at the inputs of the layer in place of those at its outputs."""

    @property
    def rows(self) -> int:
        """Rows that were added, see `Moments`."""

    def add(self, x: Tensor, kept: Tensor | None, version: int) -> None:
        """Add the rows of a call, (n, d_in), those that kept (n,) is true of; version is that of the tensor."""

    def add_gradients(self, g: Tensor, scale: Tensor, at_inputs: Tensor | None = None) -> None:
        """Add scale · gᵀg for the derivatives at the outputs of a call, (n, d_out) float32.

        Pass the derivatives at its inputs, g W of shape (n, d_in), as at_inputs if they are known.
        """

    def check(self, name: str) -> None:
        """Raise a ConversionError that names the layer if a sum is not finite."""


@dataclass(frozen=True)
class CallRows:
    """The rows of a call of a layer.

    Attributes:
        x: (n, d_in).
        products: (..., d_out), x Wᵀ.
        shape: of the input, (..., d_in).
        examples: in the batch.
    """

    x: Tensor
    products: Tensor
    shape: torch.Size
    examples: int


@runtime_checkable
class CallSums(Sums, Protocol):
    """Sums that need the rows of a call and its derivatives together."""

    def add_call(self, call: CallRows, g: Tensor, scale: Tensor, at_inputs: Tensor | None) -> None:
        """Add a call in one backward pass, in place of `add_gradients`.

        Args:
            call: its rows.
            g: (n, d_out), the derivatives at its outputs, over √scale.
            scale: (), of their squares.
            at_inputs: (n, d_in), g W if it is known.
        """

    def end_probe(self) -> None:
        """Finish a backward pass, after the derivatives of all calls."""


@dataclass
class Moments:
    """Sums over the rows that a layer saw in calibration; float64, on the layer's device.

    A row of a convolution is the input patch of one output position. If a call has many positions, all sums but the
    sensitivity use a sample of them (`panther.convert.convolutions.sampled_patches`). A row of an embedding is its
    output, (d_out,) in place of (d_in,).

    Attributes:
        second: (d_in, d_in), Σ x xᵀ.
        total: (d_in,), Σ x.
        rows: number of rows, without those that do not affect an output of the model.
        sensitivity: (d_out, d_out), Σ Jᵀ J over the rows, J being the derivative of the model's outputs with respect
            to the layer's output, estimated with random projections; None without derivatives. Only its diagonal
            (d_out,) if the layer has more than `MOST_OUTPUTS` outputs.
        calls: number of calls of the layer.
        extreme: (n, d_in), the rows with the largest entries, in the type of the inputs; at most `EXTREME_ROWS`.
        counts: (num_embeddings,), number of lookups of each row of a table; None for other layers.
        head: sums of the heads that share the weight of a table; None without heads.
        diagonal: whether only the diagonal of the sensitivity is summed.
    """

    second: Tensor
    total: Tensor
    rows: int = 0
    sensitivity: Tensor | None = None
    calls: int = 0
    extreme: Tensor | None = None
    counts: Tensor | None = None
    head: HeadMoments | None = None
    at_inputs: bool = field(default=False, init=False)
    diagonal: bool = False

    @property
    def derivatives(self) -> bool:
        """Whether the sensitivity is known."""
        return self.sensitivity is not None

    @property
    def mean(self) -> Tensor:
        """The mean of x, (d_in,)."""
        return self.total / max(self.rows, 1)

    def covariance(self, *, centred: bool) -> Tensor:
        """The mean of x xᵀ, (d_in, d_in); with centred, of x minus its mean."""
        C = self.second / max(self.rows, 1)
        return C - torch.outer(self.mean, self.mean) if centred else C

    def add(self, x: Tensor, kept: Tensor | None, version: int) -> None:  # noqa: ARG002  a protocol's
        """Add rows, see `Sums.add`."""
        x = (x if kept is None else x[kept]).double()
        self.second.addmm_(x.t(), x)
        self.total += x.sum(0)
        self.rows += len(x)

    def count(self, lookups: Lookups) -> None:
        """Count the rows that a call of a table looked up."""
        if self.counts is not None:
            self.counts += torch.bincount(lookups.indices, minlength=len(self.counts))

    def add_gradients(self, g: Tensor, scale: Tensor, at_inputs: Tensor | None = None) -> None:  # noqa: ARG002
        """Add derivatives, see `Sums.add_gradients`."""
        product = (g.square().sum(0) if self.diagonal else g.t() @ g).double().mul_(scale)
        self.sensitivity = product if self.sensitivity is None else self.sensitivity.add_(product)

    def check(self, name: str) -> None:
        """Refuse sums that are not finite, see `Sums.check`."""
        check_finite(name, self.second, self.sensitivity)
        if self.head is not None:
            self.head.check(f"the head of {name}")


class KeptMoments(Moments):
    """Moments with the matrices at a keeper: each is loaded when it is read, and stored again when it is set.

    Args:
        moments: complete, but for `panther.convert.experts.pool_moments`.
        keeper: takes its matrices.
    """

    def __init__(self, moments: Moments, keeper: Keeper) -> None:
        self._keeper = keeper
        super().__init__(
            moments.second,
            moments.total,
            moments.rows,
            moments.sensitivity,
            moments.calls,
            moments.extreme,
            moments.counts,
            moments.head,
        )

    @property
    def second(self) -> Tensor:
        """(d_in, d_in), Σ x xᵀ."""
        return self._second.load()

    @second.setter
    def second(self, second: Tensor) -> None:
        self._second = self._keeper.store(second)

    @property
    def sensitivity(self) -> Tensor | None:
        """(d_out, d_out), Σ Jᵀ J, or its diagonal (d_out,); None without derivatives."""
        return None if self._sensitivity is None else self._sensitivity.load()

    @sensitivity.setter
    def sensitivity(self, sensitivity: Tensor | None) -> None:
        self._sensitivity = None if sensitivity is None else self._keeper.store(sensitivity)

    @property
    def derivatives(self) -> bool:
        """Whether the sensitivity is known."""
        return self._sensitivity is not None


@dataclass
class HeadMoments(Moments):
    """Sums over the rows that the heads of an embedding W (V, d) saw; no sum is larger than (d, d).

    Attributes:
        weight: the table W.
        sensitivity: (d, d), Σ (JW)ᵀ(JW), from the derivatives at their inputs.
        squares: the trace of Σ JᵀJ.
    """

    weight: Tensor = field(kw_only=True)
    squares: float = 0.0
    at_inputs: bool = field(default=True, init=False)

    def add_gradients(self, g: Tensor, scale: Tensor, at_inputs: Tensor | None = None) -> None:
        """Add derivatives, see `Sums.add_gradients`."""
        self.squares += (torch.linalg.vector_norm(g, dim=1).double().square().sum() * scale).item()
        super().add_gradients(times(g, self.weight).float() if at_inputs is None else at_inputs, scale)


def sums_of(sums: Sums, module: nn.Module) -> Sums:
    """The sums of the module's unit that its calls are added to."""
    shared = sums.head if isinstance(sums, Moments) else None
    return sums if shared is None or is_embedding(module) else shared


def check_finite(name: str, of_inputs: Tensor, of_derivatives: Tensor | None) -> None:
    """Refuse sums that are not finite.

    Raises:
        ConversionError: a sum is not finite; the message names the layer.
    """
    if not bool(torch.isfinite(of_inputs).all()):
        raise ConversionError(f"calibration: the inputs of {name} hold values that are not finite")
    if of_derivatives is not None and not bool(torch.isfinite(of_derivatives).all()):
        raise ConversionError(f"calibration: the derivatives at {name} are not finite")


def empty_moments(unit: Unit) -> Moments:
    """Make moments without rows."""
    device, d_in = unit.weight.device, unit.in_features
    counts = head = None
    if is_embedding(unit.places[0].module):
        counts, d_in = torch.zeros(d_in, dtype=torch.int64, device=device), unit.out_features

    def zeros(*sizes: int) -> Tensor:
        return torch.zeros(*sizes, dtype=torch.float64, device=device)

    if unit.heads:
        head = HeadMoments(zeros(d_in, d_in), zeros(d_in), weight=weight_of(unit.places[0].module).detach())
    diagonal = keeps_diagonal(unit.out_features)
    return Moments(zeros(d_in, d_in), zeros(d_in), counts=counts, head=head, diagonal=diagonal)


def keeps_diagonal(d_out: int) -> bool:
    """Whether only the diagonal of the sensitivity is summed for a layer with d_out outputs, see `Moments`."""
    return d_out > MOST_OUTPUTS


def sensitivity_entries(d_out: int) -> int:
    """Number of entries of the sensitivity of a layer with d_out outputs."""
    return d_out if keeps_diagonal(d_out) else d_out**2
