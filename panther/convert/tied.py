"""Candidates for an embedding and the heads that share its weight, all with the same factors.

See docs/decisions/0090-tied-heads-on-shared-factors.md.
"""

from __future__ import annotations

import torch
from torch import Tensor

from panther.convert.candidates import DAMPING_FOR_FEW_ROWS, INPUT_DAMPING, OUTPUT_DAMPING
from panther.convert.embedding_candidates import (
    EmbeddingCandidate,
    embedding_candidate,
    embedding_ranks,
    weigh_lookups,
)
from panther.convert.layers import Unit
from panther.convert.moments import HeadMoments, Moments
from panther.linalg.projection import second_moment, shared_projections
from panther.linalg.whitening import damped

# (S, C) of `panther.linalg.projection.shared_projections`
Use = tuple[Tensor, Tensor]


def table_candidate(unit: Unit, moments: Moments | None) -> EmbeddingCandidate:
    """Decompose an embedding, together with the heads on its weight if calibration saw any."""
    head = None if moments is None else moments.head
    if moments is None or head is None or not head.rows:
        return embedding_candidate(unit, moments)
    weighing = weigh_lookups(unit, moments)
    S = weighing.covariance if weighing.inputs is None else weighing.inputs
    found = shared_projections(*uses_of(unit, (S, weighing.outputs), head))
    return EmbeddingCandidate(unit, weighing, found, embedding_ranks(unit), found, head.second / head.rows)


def uses_of(unit: Unit, lookups: tuple[Tensor, Tensor | None], head: HeadMoments) -> tuple[Use, Use]:
    """Losses of both uses: in the model's outputs if the sensitivity of both is known, else relative to each use."""
    S, C_out = lookups
    few = DAMPING_FOR_FEW_ROWS / head.rows
    C, G = head.second / head.rows, second_moment(unit.weight.t())
    C = _or_zero(damped(C, INPUT_DAMPING + few * len(C)), C)
    if C_out is not None and head.sensitivity is not None:
        share = (OUTPUT_DAMPING + few * unit.in_features) * head.squares / unit.in_features
        return (S, C_out), (head.sensitivity + share * G, C)
    eye = torch.eye(len(S), dtype=S.dtype, device=S.device)
    return _relative((S, eye)), _relative((G, C))


def _or_zero(C: Tensor | None, zero: Tensor) -> Tensor:
    return zero if C is None else C


def _relative(use: Use) -> Use:
    S, C = use
    whole = (S * C).sum()
    return (S / whole if whole > 0 else S), C
