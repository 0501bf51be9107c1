"""Candidates of an embedding: tables of lower rank, with the error of every rank.

See docs/decisions/0078-embeddings-of-low-rank.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from panther.convert.candidates import (
    DAMPING_FOR_FEW_ROWS,
    INPUT_DAMPING,
    OUTPUT_DAMPING,
    Candidate,
    Weighing,
)
from panther.convert.layers import Unit
from panther.convert.moments import Moments
from panther.linalg.projection import Projection, projections, second_moment
from panther.linalg.whitening import damped
from panther.nn import LowRankEmbedding, LowRankEmbeddingBag, LowRankHead
from panther.nn.embedding import LowRankTable
from panther.nn.hooks import take_hooks

# rank step: columns of the narrow table
EMBEDDING_RANK_STEP = 4
# rows without lookups in calibration get at most the weight of rows with lookups
_MOST_UNSEEN = 0.5


def embedding_ranks(unit: Unit) -> tuple[int, ...]:
    """Ranks at which a table stores fewer parameters."""
    most = min((unit.weights - 1) // (unit.in_features + unit.out_features), unit.in_features, unit.out_features)
    return tuple(range(EMBEDDING_RANK_STEP, most + 1, EMBEDDING_RANK_STEP))


def embedding_candidate(unit: Unit, moments: Moments | None) -> EmbeddingCandidate:
    """Decompose a table for the lookups of calibration; without any, all rows weigh the same."""
    W = unit.weight.t()
    weighing = None if moments is None else weigh_lookups(unit, moments)
    if weighing is None:
        S, C_out = second_moment(W), None
    else:
        S, C_out = weighing.covariance if weighing.inputs is None else weighing.inputs, weighing.outputs
    found = projections(S, C_out)
    if C_out is None:
        energies = found.energies / found.energies.sum().clamp_min(torch.finfo(torch.float64).tiny)
        found = Projection(found.left, found.right, energies)
    return EmbeddingCandidate(unit, weighing, found, embedding_ranks(unit), found)


def weigh_lookups(unit: Unit, moments: Moments) -> Weighing:
    """The damped second moment of an embedding's outputs, with unseen rows.

    The weight of unseen rows is the probability that the next lookup is of one of them. It follows the estimate of
    Good and Turing: the share of lookups of rows that were seen once. (Good, "The population frequencies of species
    and the estimation of population parameters", 1953.)
    """
    S = moments.second / max(moments.rows, 1)
    if moments.counts is not None:
        S = _with_unseen(unit, S, moments.counts, moments.rows)
    outputs = None
    if moments.sensitivity is not None:
        few = DAMPING_FOR_FEW_ROWS / max(moments.rows, 1)
        outputs = damped(moments.sensitivity, OUTPUT_DAMPING + few * unit.out_features)
    return Weighing(S, None, damped(S, INPUT_DAMPING), outputs, None)


def _with_unseen(unit: Unit, S: Tensor, counts: Tensor, outputs: int) -> Tensor:
    unseen, lookups = counts == 0, int(counts.sum())
    if not bool(unseen.any()) or not lookups:
        return S
    mass = min(max(int((counts == 1).sum()), 1) / lookups, _MOST_UNSEEN)
    # for independent rows, a sum of n has n times the second moment of one row, and a mean 1/n of it
    module, size = unit.places[0].module, lookups / max(outputs, 1)
    scale = 1.0
    if isinstance(module, nn.EmbeddingBag):
        scale = size if module.mode == "sum" else 1 / size
    return (1 - mass) * S + mass * scale * second_moment(unit.weight.t(), unseen) / unseen.sum()


@dataclass(eq=False)
class EmbeddingCandidate(Candidate):
    """A lookup in a table, then a product; heads on the same weight use the same factors in reverse order.

    Attributes:
        projection: the spectrum, as a projection.
        head_inputs: (d, d), the second moment of the inputs of its heads; None if calibration saw none.
    """

    projection: Projection
    head_inputs: Tensor | None = None

    def stored(self, rank: int) -> tuple[int, int]:
        """Number of learned and of fixed entries."""
        return rank * (self.unit.in_features + self.unit.out_features), 0

    def multiply_adds(self, rank: int) -> int:
        """Multiply-adds per row or bag, and per row of each head."""
        return rank * self.unit.out_features + len(self.unit.heads) * sum(self.stored(rank))

    def lost(self, rank: int) -> Tensor:
        """The transposed error W - Ŵ, (d, V)."""
        return self.projection.remainder(rank).t() @ self.unit.weight.double()

    def errors(self, rank: int) -> tuple[float, float | None]:
        """The relative errors of the table and on the data; with heads, the latter is the RMS over both uses."""
        lost, G = self.projection.remainder(rank), second_moment(self.unit.weight.t())

        def relative(S: Tensor, C: Tensor) -> float:
            whole = (S * C).sum()
            return ((S * (lost @ C @ lost.t())).sum() / whole).clamp_min(0).item() if whole > 0 else 0.0

        eye = torch.eye(len(G), dtype=G.dtype, device=G.device)
        on_data = [] if self.weighing is None else [relative(self.weighing.covariance, eye)]
        on_data += [] if self.head_inputs is None else [relative(G, self.head_inputs)]
        return relative(G, eye) ** 0.5, (sum(on_data) / len(on_data)) ** 0.5 if on_data else None

    def layers(self, rank: int) -> Sequence[LowRankTable]:
        """Low-rank layers, one for each replaced module; they share their factors."""
        A, B = self.projection.factors(self.unit.weight.t(), rank)
        found: list[LowRankTable] = []
        for place in self.unit.places:
            layer = table_like(place.module, rank)
            if isinstance(layer, LowRankHead):
                layer.register_parameter("bias", place.module._parameters.get("bias"))
            if found:
                layer.tie_to(found[0])
            else:
                layer.set_factors(A, B)
            take_hooks(layer, place.module)
            found.append(layer)
        return found

    @torch.no_grad()
    def overflows(self, rank: int) -> bool:
        """Whether a factor overflows its type."""
        if self.unit.weight.dtype.itemsize > 2:
            return False
        return not all(bool(tensor.isfinite().all()) for tensor in self.layers(rank)[0].parameters())


def table_like(module: nn.Module, rank: int, *, device: str | None = None) -> LowRankTable:
    """Make a low-rank layer for an embedding, or for a head that shares its weight; it has no values yet.

    Raises:
        TypeError: the module is neither.
    """
    if isinstance(module, nn.EmbeddingBag):
        return LowRankEmbeddingBag.like(module, rank, device=device)
    if isinstance(module, nn.Embedding):
        return LowRankEmbedding.like(module, rank, device=device)
    if isinstance(module, nn.Linear):
        return LowRankHead.like(module, rank, device=device)
    raise TypeError(f"{type(module).__name__} is neither an embedding nor a linear layer")
