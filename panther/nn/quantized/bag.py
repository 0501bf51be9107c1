"""Bags of embeddings whose rows are stored in 8 or 4 bits."""

from __future__ import annotations

from typing import Self

from torch import Tensor, nn

from panther.nn.bags import reduce_bags
from panther.nn.quantized.embedding import BlockEmbedding, Int8Embedding


class QuantizedBag(nn.Module):
    """Sums or means over the rows of a quantized table, in place of an ``nn.EmbeddingBag``.

    Args:
        table: that is looked up.
        mode: "sum" or "mean".
        include_last_offset, padding_idx: as of nn.EmbeddingBag.

    Raises:
        ValueError: another mode.
    """

    def __init__(
        self,
        table: Int8Embedding | BlockEmbedding,
        mode: str,
        *,
        include_last_offset: bool = False,
        padding_idx: int | None = None,
    ) -> None:
        super().__init__()
        if mode not in ("sum", "mean"):
            raise ValueError(f"mode ({mode!r}) must be 'sum' or 'mean'")
        self.num_embeddings, self.embedding_dim = table.num_embeddings, table.embedding_dim
        self.mode, self.include_last_offset, self.padding_idx = mode, include_last_offset, padding_idx
        self.table = table

    @classmethod
    def like(cls, bag: nn.EmbeddingBag, table: Int8Embedding | BlockEmbedding) -> Self:
        """With the options of a bag."""
        return cls(table, bag.mode, include_last_offset=bag.include_last_offset, padding_idx=bag.padding_idx).train(
            bag.training
        )

    def forward(
        self,
        input: Tensor,  # noqa: A002  as torch names it
        offsets: Tensor | None = None,
        per_sample_weights: Tensor | None = None,
    ) -> Tensor:
        """Look up bags: indices (bags, n), or (n,) with the offset of each bag → (bags, embedding_dim)."""
        return reduce_bags(
            self.table(input),
            input,
            offsets,
            per_sample_weights,
            mode=self.mode,
            include_last_offset=self.include_last_offset,
            padding_idx=self.padding_idx,
        )

    def extra_repr(self) -> str:
        """How rows are put together."""
        return f"mode={self.mode!r}"
