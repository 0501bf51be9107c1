"""Options of embeddings: float, 8 bits with a scale per row, 4 bits in blocks of a row, and low rank."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial

from torch import nn

from panther.compression.options import FLOAT, INT4, INT8, LOW_RANK, Option, Part, Product, Replacements, unchanged
from panther.convert.deviation import Reference
from panther.convert.embedding_candidates import (
    EMBEDDING_RANK_STEP,
    EmbeddingCandidate,
    embedding_ranks,
)
from panther.convert.embeddings import TABLES, is_embedding
from panther.convert.layers import Place, Unit, find_units
from panther.convert.moments import Moments
from panther.convert.swap import Swap
from panther.convert.tied import table_candidate
from panther.nn.quantized import BlockEmbedding, Int8Embedding
from panther.nn.quantized.bag import QuantizedBag
from panther.quantize.embeddings import Table, too_small

_BITS = {INT8: 8, INT4: 4}
# ranks tried for a table, evenly spread
_MOST_RANKS = 6


def find_lookups(model: nn.Module, linear: Sequence[Unit] = ()) -> list[Unit]:
    """Every embedding and bag of embeddings, with the reason if one can't be of low rank.

    Args:
        model: the whole model.
        linear: eligible linear layers; a layer that shares the weight of an embedding is handled with the embedding.
    """
    eligible = {id(place.module) for unit in linear for place in unit.places}
    every = find_units(model, lambda module, _: is_embedding(module) or id(module) in eligible, (), embeddings=TABLES)
    units = [unit for unit in every if is_embedding(unit.places[0].module)]
    for unit in units:
        if unit.reason is None and not embedding_ranks(unit):
            unit.reason = f"too small: no rank that is a multiple of {EMBEDDING_RANK_STEP} stores fewer parameters"
    return units


def embedding_parts(
    model: nn.Module,
    tables: Sequence[Table],
    units: Sequence[Unit],
    moments: Mapping[int, Moments],
    reference: Reference,
    kinds: Sequence[str],
    step: Callable[[str, int, int], None],
) -> list[Part]:
    """Every embedding with its options; each error is measured on the whole model with only one table replaced.

    Args:
        model: the model in eval mode; it is unchanged afterwards.
        tables: its embeddings, with the reason if one can't be quantized.
        units: its embeddings and bags of embeddings, with the reason if one can't be of low rank.
        moments: calibration sums by the id of a unit.
        reference: outputs of the original model.
        kinds: the requested options.
        step: called with (what, done, all).
    """
    by_module = {id(unit.places[0].module): unit for unit in units}
    further = {id(place.module) for unit in units for place in unit.places[1:]}
    found = [*(table for table in tables if id(table.place.module) not in further), *_bags(units)]
    parts = []
    for done, table in enumerate(found):
        weight = table.place.module.get_parameter("weight")
        unit, reason = by_module[id(table.place.module)], table.reason
        options = [_float(unit, weight.nbytes)]
        every = [] if reason is not None else list(_quantized(table, kinds))
        if LOW_RANK in kinds:
            every += _of_low_rank(unit, moments.get(id(unit)))
        if unit.heads:
            reason = unit.reason or f"{reason}; low_rank alone keeps them on one weight"
        for option, make in every:
            with Swap(model, make()):
                error = reference.deviation(model).error ** 2
            options.append(dataclasses.replace(option, error=error))
        if every:
            step("weighing embeddings", done + 1, len(found))
        reason = None if every else reason or "none of kinds applies to an embedding"
        shape = (int(weight.shape[0]), int(weight.shape[1]))
        names = tuple(name for place in unit.places for name in place.names)
        parts.append(Part(names[0], names, "embedding", shape, tuple(options), reason))
    return parts


def _bags(units: Iterable[Unit]) -> Iterator[Table]:
    """The bags among the units as tables; a reason against low rank, such as mode="max", also excludes fewer bits."""
    for unit in units:
        bag = unit.places[0].module
        if isinstance(bag, nn.EmbeddingBag):
            yield Table(unit.places[0], unit.reason or too_small(bag.weight))


def _quantized(table: Table, kinds: Sequence[str]) -> Iterator[tuple[Option, Callable[[], Replacements]]]:
    module = table.place.module
    bag = module if isinstance(module, nn.EmbeddingBag) else None
    # bags: count the rows that they look up
    rows = table if bag is None else Table(Place(_rows_of(bag), []), None)
    for kind, bits in _BITS.items():
        # 4-bit entries are packed in pairs, so an odd width gets 8 bits
        if kind not in kinds or (bits == 4 and rows.embedding.embedding_dim % 2):
            continue
        chosen = dataclasses.replace(rows, bits=bits)
        made = chosen.quantized()
        if bag is not None and isinstance(made, Int8Embedding | BlockEmbedding):
            made = QuantizedBag.like(bag, made)
        make = partial(_given, [(table.place, made)])
        yield Option(kind, chosen.stored_bytes, 0, 0.0, make, detail=chosen.how), make


def _rows_of(bag: nn.EmbeddingBag) -> nn.Embedding:
    """The table of a bag as an embedding."""
    rows = nn.Embedding(bag.num_embeddings, bag.embedding_dim, device="meta", dtype=bag.weight.dtype)
    rows.weight = bag.weight
    return rows


def _of_low_rank(unit: Unit, moments: Moments | None) -> Iterator[tuple[Option, Callable[[], Replacements]]]:
    ranks = embedding_ranks(unit)
    if unit.reason is not None or not ranks or moments is None or not moments.rows:
        return
    candidate = table_candidate(unit, moments)
    for rank in ranks[:: max(1, len(ranks) // _MOST_RANKS)]:
        if candidate.overflows(rank):
            continue
        size = sum(candidate.stored(rank)) * unit.element_bytes
        make = partial(_made, candidate, rank)
        products = tuple(_products(unit, rank))
        yield Option(LOW_RANK, size, candidate.multiply_adds(rank), 0.0, make, rank, products), make


def _float(unit: Unit, size: int) -> Option:
    products = tuple(Product(FLOAT, head.in_features, head.out_features) for head in unit.heads[:1])
    return Option(FLOAT, size, len(unit.heads) * unit.weights, 0.0, unchanged, products=products)


def _products(unit: Unit, rank: int) -> Iterator[Product]:
    """Products of a call of a head; the product after a lookup is not timed."""
    for head in unit.heads[:1]:
        yield from (Product(FLOAT, head.in_features, rank), Product(FLOAT, rank, head.out_features))


def _made(candidate: EmbeddingCandidate, rank: int) -> Replacements:
    return list(zip(candidate.unit.places, candidate.layers(rank), strict=True))


def _given(made: Replacements) -> Replacements:
    return made
