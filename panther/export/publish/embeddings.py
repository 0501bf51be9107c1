"""Card entries of low-rank embeddings."""

from __future__ import annotations

from torch import nn

from panther.counting import ParameterCount
from panther.export import card as cards
from panther.nn.embedding import LowRankEmbeddingBag, LowRankTable
from panther.nn.head import LowRankHead


def embedding_entries(model: nn.Module) -> tuple[cards.Embedding, ...]:
    """One card entry for each low-rank embedding; layers that share factors have one entry with several uses."""
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
    """Totals of the low-rank embeddings; None without any."""
    counts = [_count(group) for group in _groups(model)]
    return sum(counts, start=ParameterCount(0, 0, 0)) if counts else None


def _groups(model: nn.Module) -> list[dict[str, LowRankTable]]:
    """The layers by name in the order of the model, grouped by the factors that they share."""
    found: dict[tuple[int, int], dict[str, LowRankTable]] = {}
    for name, module in model.named_modules():
        if isinstance(module, LowRankTable):
            found.setdefault((id(module.A), id(module.B)), {})[name or type(module).__name__] = module
    return list(found.values())


def _count(group: dict[str, LowRankTable]) -> ParameterCount:
    """Parameters of the factors; the bias of a head counts as another parameter of the model."""
    return LowRankTable.parameter_count(next(iter(group.values())))
