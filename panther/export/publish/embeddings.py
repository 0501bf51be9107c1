"""Card entries of embeddings of low rank."""

from __future__ import annotations

from torch import nn

from panther.counting import ParameterCount
from panther.export import card as cards
from panther.nn.embedding import LowRankEmbeddingBag, LowRankTable
from panther.nn.head import LowRankHead


def embedding_entries(model: nn.Module) -> tuple[cards.Embedding, ...]:
    """One card entry for each embedding of low rank; those that share factors are one with several uses."""
    found = []
    for group in _groups(model):
        heads = {name: layer.multiply_adds_per_row() for name, layer in group.items() if isinstance(layer, LowRankHead)}
        lookups = [layer for name, layer in group.items() if name not in heads]
        table, count = next(iter([*lookups, *group.values()])), _count(group)
        planned = table.rank * table.embedding_dim * bool(lookups) + sum(ours for ours, _ in heads.values())
        found.append(
            cards.Embedding(
                next(iter(group)),
                table.num_embeddings,
                table.embedding_dim,
                table.rank,
                table.mode if isinstance(table, LowRankEmbeddingBag) else "lookup",
                cards.Parameters(count.dense, count.learnable, count.fixed),
                cards.MultiplyAdds(sum(dense for _, dense in heads.values()), planned),
                tuple(group) if len(group) > 1 else None,
                tuple(heads) or None,
            )
        )
    return tuple(found)


def embedding_count(model: nn.Module) -> ParameterCount | None:
    """The embeddings of low rank together; None where there are none."""
    counts = [_count(group) for group in _groups(model)]
    return sum(counts, start=ParameterCount(0, 0, 0)) if counts else None


def _groups(model: nn.Module) -> list[dict[str, LowRankTable]]:
    """The layers by name, those that share A and B together, in the order of the model."""
    found: dict[tuple[int, int], dict[str, LowRankTable]] = {}
    for name, module in model.named_modules():
        if isinstance(module, LowRankTable):
            found.setdefault((id(module.A), id(module.B)), {})[name or type(module).__name__] = module
    return list(found.values())


def _count(group: dict[str, LowRankTable]) -> ParameterCount:
    """Of the factors; the bias of a head is one of the model's other parameters."""
    return LowRankTable.parameter_count(next(iter(group.values())))
