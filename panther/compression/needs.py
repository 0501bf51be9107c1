"""Memory of a compression by layer, in bytes, besides the moments and the layers of the plans that are tried.

See docs/decisions/0100-moments-in-bounded-memory.md.
"""

from __future__ import annotations

from collections.abc import Sequence

from panther.convert.allocate import possible_ranks
from panther.convert.collected import Needs
from panther.convert.conv_candidates import conv_ranks
from panther.convert.convolutions import positions_of
from panther.convert.embeddings import is_embedding
from panther.convert.layers import Unit
from panther.convert.moments import sensitivity_entries
from panther.quantize.needs import kept_rows, work_on_ranges

_DOUBLE = 8


def needs_of(*, low_rank: bool) -> Needs:
    """The memory of a compression.

    Args:
        low_rank: whether layers are decomposed.
    """

    def kept(unit: Unit) -> int:
        return kept_bytes(unit, low_rank=low_rank)

    return Needs(kept, work_of)


def kept_bytes(unit: Unit, *, low_rank: bool) -> int:
    """Bytes of the sampled inputs of a layer, and of its decomposed weight."""
    d_in, d_out = unit.in_features, unit.out_features
    if is_embedding(unit.places[0].module):
        return _DOUBLE * 6 * d_out**2
    if not low_rank:
        return kept_rows(unit)
    if unit.convolution is None:
        rank = max(possible_ranks(d_in, d_out), default=0)
        return kept_rows(unit) + _DOUBLE * rank * (d_in + d_out)
    ranks = conv_ranks(unit)
    found = ranks.get("output", (0,))[-1] * (d_in + d_out)
    if "input" in ranks:
        entries = ranks["input"][-1] * positions_of(unit.convolution)
        found += entries * (entries + d_out)
    return _DOUBLE * found


def work_of(units: Sequence[Unit]) -> int:
    """Bytes while the options of layers that read one tensor are found, and one of them is made."""
    if is_embedding(units[0].places[0].module):
        return _DOUBLE * 12 * max(unit.out_features for unit in units) ** 2
    d_in, d_out = max(unit.in_features for unit in units), max(unit.out_features for unit in units)
    return max(work_on_ranges(units), _DOUBLE * (10 * d_in**2 + 8 * sensitivity_entries(d_out) + 12 * d_in * d_out))
