"""Low-rank embeddings: a lookup in a narrow table, then one product.

See docs/decisions/0078-embeddings-of-low-rank.md.
"""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor, nn

from panther.counting import ParameterCount
from panther.linalg.projection import Projection, closest_rows
from panther.nn.checks import check_sizes

MAX_REASON = "the largest entries of rows are not those of their factors"


class LowRankTable(nn.Module):
    """The common base of `LowRankEmbedding`, `LowRankEmbeddingBag` and `LowRankHead`: a table of rows A[v] @ B."""

    A: nn.Parameter
    B: nn.Parameter
    padding_idx: int | None

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        rank: int,
        padding_idx: int | None,
        max_norm: float | None,
        generator: torch.Generator | None,
        **options: Any,
    ) -> None:
        super().__init__()
        check_sizes(num_embeddings=num_embeddings, embedding_dim=embedding_dim, rank=rank)
        if rank > embedding_dim:
            raise ValueError(f"rank ({rank}) must be at most embedding_dim ({embedding_dim})")
        if max_norm is not None:
            raise ValueError(
                f"max_norm ({max_norm}) must be None: it changes rows of the table while they are looked up, and "
                "the norm of a row A[v] @ B is not that of A[v]"
            )
        self.num_embeddings, self.embedding_dim, self.rank = num_embeddings, embedding_dim, rank
        self.padding_idx = _checked_padding(padding_idx, num_embeddings)
        self.A = nn.Parameter(torch.empty(num_embeddings, rank, **options))
        self.B = nn.Parameter(torch.empty(rank, embedding_dim, **options))
        self.reset_parameters(generator)

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw A and B so that the entries of the table have the variance 1, as those of ``nn.Embedding``."""
        if self.A.is_meta:
            return
        nn.init.normal_(self.A, generator=generator)
        nn.init.normal_(self.B, std=self.rank**-0.5, generator=generator)
        if self.padding_idx is not None:
            with torch.no_grad():
                self.A[self.padding_idx].zero_()

    @property
    def weight(self) -> Tensor:
        """The dense table A @ B, (num_embeddings, embedding_dim), computed on each access."""
        return self.A @ self.B

    def parameter_count(self) -> ParameterCount:
        """Count the entries of A and B, all learnable, and those of the dense table."""
        learnable = self.rank * (self.num_embeddings + self.embedding_dim)
        return ParameterCount(self.num_embeddings * self.embedding_dim, learnable, 0)

    @torch.no_grad()
    def set_factors(self, A: Tensor, B: Tensor) -> Self:
        """Copy the values of both factors, in the type of the layer.

        Args:
            A: (num_embeddings, rank).
            B: (rank, embedding_dim).
        """
        self.A.copy_(A)
        self.B.copy_(B)
        return self

    def tie_to(self, other: LowRankTable) -> None:
        """Share the factors of another table, so both are trained together."""
        self.A, self.B = other.A, other.B

    def placed_like(self, weight: Tensor, device: torch.device | str | None) -> Self:
        """Make the layer without values, on a device (the weight's when None); it is trainable if the weight is."""
        place = weight.device if device is None else torch.device(device)
        made = self if place.type == "meta" else self.to_empty(device=place)
        for factor in (made.A, made.B):
            factor.requires_grad_(weight.requires_grad)
        return made

    def extra_repr(self) -> str:
        """The sizes."""
        padding = "" if self.padding_idx is None else f", padding_idx={self.padding_idx}"
        return f"{self.num_embeddings}, {self.embedding_dim}, rank={self.rank}{padding}"


class LowRankEmbedding(LowRankTable):
    """An embedding whose table is the product of two factors; replaces ``nn.Embedding``.

    y = A[x] @ B: a lookup in a table of few columns, then a product with a small matrix. (Lan et al.,
    "ALBERT", 2020, which calls it a factorized embedding parameterization.) It stores
    rank·(num_embeddings + embedding_dim) numbers, all of them learnable.

    Args:
        num_embeddings, embedding_dim, padding_idx, scale_grad_by_freq, sparse, device, dtype: as for ``nn.Embedding``;
            scale_grad_by_freq and sparse apply to the gradient of A.
        rank: r, the columns of A.
        max_norm: None; anything else is refused.
        generator: of the initial values; torch's global one when None.

    Attributes:
        A: (num_embeddings, rank), Parameter.
        B: (rank, embedding_dim), Parameter.

    Raises:
        ValueError: a size is out of range, or max_norm is given.
        TypeError: a size is not an integer.

    >>> import torch
    >>> layer = LowRankEmbedding(10_000, 256, rank=32)
    >>> layer(torch.tensor([[4, 8, 15], [16, 23, 42]])).shape
    torch.Size([2, 3, 256])
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        rank: int,
        padding_idx: int | None = None,
        max_norm: float | None = None,
        scale_grad_by_freq: bool = False,
        sparse: bool = False,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(
            num_embeddings, embedding_dim, rank, padding_idx, max_norm, generator, device=device, dtype=dtype
        )
        self.scale_grad_by_freq, self.sparse = scale_grad_by_freq, sparse

    @classmethod
    def from_embedding(cls, layer: nn.Embedding, rank: int, *, row_weights: Tensor | None = None) -> Self:
        """Make the embedding of a rank whose rows are closest to those of a trained one.

        It is the truncated SVD of the table, its rows weighed: no other A and B make Σ_v weight_v ‖W[v] - A[v] @ B‖²
        less. `panther.sketch_` converts models, and weighs rows by their counts in calibration.

        Args:
            layer: source of options, dtype, device, training mode and requires_grad; it is not changed.
            rank: r.
            row_weights: (num_embeddings,), such as the frequencies of tokens; all the same when None.

        Raises:
            TypeError: layer is not an nn.Embedding.
            ValueError: a size is out of range, max_norm is set, or the table or the weights hold values that are not
                finite.
        """
        if not isinstance(layer, nn.Embedding):
            raise TypeError(f"layer ({type(layer).__name__}) must be an nn.Embedding")
        found = projection_of(layer.weight, row_weights)
        return cls.like(layer, rank).set_factors(*found.factors(layer.weight.detach(), rank))

    @classmethod
    def like(cls, layer: nn.Embedding, rank: int, *, device: torch.device | str | None = None) -> Self:
        """Make a layer with the sizes, options, dtype and device of an embedding; its factors have no values yet."""
        made = cls(
            layer.num_embeddings,
            layer.embedding_dim,
            rank,
            layer.padding_idx,
            layer.max_norm,
            layer.scale_grad_by_freq,
            layer.sparse,
            device="meta",
            dtype=layer.weight.dtype,
        )
        return made.placed_like(layer.weight, device).train(layer.training)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  as torch names it
        """Look up rows: indices of any shape (…) → (…, embedding_dim)."""
        rows = nn.functional.embedding(
            input, self.A, self.padding_idx, scale_grad_by_freq=self.scale_grad_by_freq, sparse=self.sparse
        )
        return rows @ self.B


class LowRankEmbeddingBag(LowRankTable):
    """A bag of embeddings whose table is the product of two factors; replaces ``nn.EmbeddingBag``.

    y = bag(A[x]) @ B: sums and means are linear, so bags are summed over the few columns of A, and only the sums are
    multiplied by B. The maximum is not linear and has no such form.

    Args:
        num_embeddings, embedding_dim, scale_grad_by_freq, sparse, include_last_offset, padding_idx, device, dtype: as
            for ``nn.EmbeddingBag``.
        rank: r, the columns of A.
        max_norm: None; anything else is refused.
        mode: ``"mean"`` or ``"sum"``.
        generator: of the initial values; torch's global one when None.

    Attributes:
        A: (num_embeddings, rank), Parameter.
        B: (rank, embedding_dim), Parameter.

    Raises:
        ValueError: a size or option is out of range, mode is ``"max"``, or max_norm is given.
        TypeError: a size is not an integer.

    >>> import torch
    >>> layer = LowRankEmbeddingBag(10_000, 64, rank=16, mode="sum")
    >>> layer(torch.tensor([[4, 8, 15], [16, 23, 42]])).shape
    torch.Size([2, 64])
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        rank: int,
        max_norm: float | None = None,
        scale_grad_by_freq: bool = False,
        mode: str = "mean",
        sparse: bool = False,
        include_last_offset: bool = False,
        padding_idx: int | None = None,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        if mode not in ("mean", "sum"):
            raise ValueError(f"mode ({mode!r}) must be 'mean' or 'sum': {MAX_REASON}")
        super().__init__(
            num_embeddings, embedding_dim, rank, padding_idx, max_norm, generator, device=device, dtype=dtype
        )
        self.mode, self.include_last_offset = mode, include_last_offset
        self.scale_grad_by_freq, self.sparse = scale_grad_by_freq, sparse

    @classmethod
    def from_embedding(cls, layer: nn.EmbeddingBag, rank: int, *, row_weights: Tensor | None = None) -> Self:
        """Make the bag of a rank whose rows are closest to those of a trained one, as `LowRankEmbedding` does.

        Raises:
            TypeError: layer is not an nn.EmbeddingBag.
            ValueError: as for `LowRankEmbedding.from_embedding`, or its mode is ``"max"``.
        """
        if not isinstance(layer, nn.EmbeddingBag):
            raise TypeError(f"layer ({type(layer).__name__}) must be an nn.EmbeddingBag")
        made = cls.like(layer, rank)
        return made.set_factors(*projection_of(layer.weight, row_weights).factors(layer.weight.detach(), rank))

    @classmethod
    def like(cls, layer: nn.EmbeddingBag, rank: int, *, device: torch.device | str | None = None) -> Self:
        """Make a layer with the sizes, options, dtype and device of a bag; its factors have no values yet."""
        made = cls(
            layer.num_embeddings,
            layer.embedding_dim,
            rank,
            layer.max_norm,
            layer.scale_grad_by_freq,
            layer.mode,
            layer.sparse,
            layer.include_last_offset,
            layer.padding_idx,
            device="meta",
            dtype=layer.weight.dtype,
        )
        return made.placed_like(layer.weight, device).train(layer.training)

    def forward(
        self,
        input: Tensor,  # noqa: A002  as torch names it
        offsets: Tensor | None = None,
        per_sample_weights: Tensor | None = None,
    ) -> Tensor:
        """Look up bags: indices (bags, n), or (n,) with the offset of each bag → (bags, embedding_dim)."""
        bags = nn.functional.embedding_bag(
            input,
            self.A,
            offsets,
            scale_grad_by_freq=self.scale_grad_by_freq,
            mode=self.mode,
            sparse=self.sparse,
            per_sample_weights=per_sample_weights,
            include_last_offset=self.include_last_offset,
            padding_idx=self.padding_idx,
        )
        return bags @ self.B


def projection_of(weight: Tensor, row_weights: Tensor | None) -> Projection:
    """The subspaces of every rank with the least loss of a table's rows.

    Raises:
        ValueError: the table or the weights hold values that are not finite, or the weights are negative, or all zero.
    """
    if weight.is_meta:
        raise ValueError("the weight of layer is on the device 'meta' and has no values; load it first")
    if not bool(weight.detach().isfinite().all()):
        raise ValueError("the weight of layer holds values that are not finite")
    if row_weights is not None:
        if row_weights.shape != (len(weight),):
            raise ValueError(
                f"row_weights of shape {tuple(row_weights.shape)} must be (num_embeddings,) = ({len(weight)},)"
            )
        if not bool((row_weights.isfinite() & (row_weights >= 0)).all()) or not bool(row_weights.any()):
            raise ValueError("row_weights must be finite and not negative, and some of them above 0")
    return closest_rows(weight.detach(), row_weights)


def _checked_padding(padding_idx: int | None, num_embeddings: int) -> int | None:
    """Index of the padding row, counted from 0, as torch stores it."""
    if padding_idx is None:
        return None
    if not -num_embeddings <= padding_idx < num_embeddings:
        raise ValueError(
            f"padding_idx ({padding_idx}) must be from {-num_embeddings} to {num_embeddings - 1} (num_embeddings - 1)"
        )
    return padding_idx % num_embeddings
