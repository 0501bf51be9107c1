"""Card entries of embeddings of low rank."""

from __future__ import annotations

from torch import nn

from panther.counting import ParameterCount
from panther.export import card as cards
from panther.nn.embedding import LowRankEmbeddingBag, LowRankTable


def embedding_entries(model: nn.Module) -> tuple[cards.Embedding, ...]:
    """One card entry for each embedding of low rank; those that share factors are one with several uses."""
    found = []
    for names, table in _groups(model):
        count = table.parameter_count()
        found.append(
            cards.Embedding(
                names[0],
                table.num_embeddings,
                table.embedding_dim,
                table.rank,
                table.mode if isinstance(table, LowRankEmbeddingBag) else "lookup",
                cards.Parameters(count.dense, count.learnable, count.fixed),
                cards.MultiplyAdds(0, table.rank * table.embedding_dim),
                tuple(names) if len(names) > 1 else None,
            )
        )
    return tuple(found)


def embedding_count(model: nn.Module) -> ParameterCount | None:
    """The embeddings of low rank together; None where there are none."""
    counts = [table.parameter_count() for _, table in _groups(model)]
    return sum(counts, start=ParameterCount(0, 0, 0)) if counts else None


def _groups(model: nn.Module) -> list[tuple[list[str], LowRankTable]]:
    """The tables with their names, those that share A and B together, in the order of the model."""
    found: dict[tuple[int, int], tuple[list[str], LowRankTable]] = {}
    for name, module in model.named_modules():
        if isinstance(module, LowRankTable):
            names, _ = found.setdefault((id(module.A), id(module.B)), ([], module))
            names.append(name or type(module).__name__)
    return list(found.values())
