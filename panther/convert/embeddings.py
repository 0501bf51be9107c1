"""Which embeddings can be converted, and which rows a call of one looks up.

See docs/decisions/0078-embeddings-of-low-rank.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from panther.nn.bags import bag_of_each
from panther.nn.embedding import MAX_REASON

Embeddings = nn.Embedding | nn.EmbeddingBag
Kinds = tuple[type[Embeddings], ...]

BAGS: Kinds = (nn.EmbeddingBag,)
TABLES: Kinds = (nn.Embedding, nn.EmbeddingBag)


def is_embedding(module: nn.Module, kinds: Kinds = TABLES) -> TypeGuard[Embeddings]:
    """Whether it is an nn.Embedding or nn.EmbeddingBag, or just one of ``kinds``."""
    return isinstance(module, kinds)


def reason_of_embedding(module: Embeddings) -> str | None:
    """Why an embedding stays dense, or None."""
    dense = nn.EmbeddingBag if isinstance(module, nn.EmbeddingBag) else nn.Embedding
    if type(module).forward is not dense.forward or "forward" in module.__dict__:
        return f"{type(module).__name__} does more than nn.{dense.__name__} in its forward"
    if module.max_norm is not None:
        return "its max_norm changes the table during the lookup"
    if isinstance(module, nn.EmbeddingBag) and module.mode not in ("sum", "mean"):
        return f"mode={module.mode!r}: {MAX_REASON}"
    return None


@dataclass(frozen=True)
class Lookups:
    """The lookups of one call of an embedding.

    Attributes:
        indices: (n,).
        rows: (n,), the row of the output (rows, d) of each index; None if every index has a separate row.
    """

    indices: Tensor
    rows: Tensor | None

    def moving(self, moves: Tensor) -> Lookups:
        """The lookups of output rows where a mask, (rows,), is True."""
        kept = moves if self.rows is None else moves[self.rows]
        return Lookups(self.indices[kept], None if self.rows is None else self.rows[kept])


def lookups_of(module: Embeddings, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Lookups:
    """The rows that a call looks up; indices that a bag leaves out are not among them."""
    named = dict(zip(("input", "offsets"), args, strict=False)) | dict(kwargs)
    x, offsets = named["input"].detach(), named.get("offsets")
    if isinstance(module, nn.Embedding):
        return Lookups(x.reshape(-1), None)
    if offsets is None:
        bags = torch.arange(len(x), device=x.device).repeat_interleave(x.shape[1])
    else:
        bags = bag_of_each(x, offsets[: len(offsets) - int(module.include_last_offset)])
    found = Lookups(x.reshape(-1), bags)
    if module.padding_idx is None:
        return found
    counted = found.indices != module.padding_idx
    return Lookups(found.indices[counted], bags[counted])
