"""The options of embeddings: float, 8 bits with a scale a row, and 4 bits in blocks of a row."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial

from torch import nn

from panther.compression.options import FLOAT, INT4, INT8, Option, Part, Replacements, unchanged
from panther.convert.deviation import Reference
from panther.convert.swap import Swap
from panther.quantize.embeddings import Table

_BITS = {INT8: 8, INT4: 4}


def embedding_parts(
    model: nn.Module,
    tables: Sequence[Table],
    reference: Reference,
    kinds: Sequence[str],
    step: Callable[[str, int, int], None],
) -> list[Part]:
    """Every embedding with its options; the error of each is measured on the whole model, with it alone replaced."""
    found = []
    for done, table in enumerate(tables):
        embedding = table.embedding
        options, reason = [Option(FLOAT, embedding.weight.nbytes, 0, 0.0, unchanged)], table.reason
        if reason is None:
            for kind, bits in _BITS.items():
                # a width that does not come in pairs gets 8 bits in place of 4
                if kind not in kinds or (bits == 4 and embedding.embedding_dim % 2):
                    continue
                quantized = dataclasses.replace(table, bits=bits)
                made: Replacements = [(table.place, quantized.quantized())]
                with Swap(model, made):
                    error = reference.deviation(model).error ** 2
                make = partial(_given, made)
                options.append(Option(kind, quantized.stored_bytes, 0, error, make, detail=quantized.how))
            step("weighing embeddings", done + 1, len(tables))
        if len(options) == 1 and reason is None:
            reason = "kinds leaves nothing that an embedding can become"
        shape = (embedding.num_embeddings, embedding.embedding_dim)
        found.append(Part(table.place.names[0], tuple(table.place.names), "embedding", shape, tuple(options), reason))
    return found


def _given(made: Replacements) -> Replacements:
    return made
