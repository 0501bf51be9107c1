"""Batching decisions for made-up models: rows first in every tensor, or no batching."""

from app.runtime.batching import Batching


class _First(dict):
    def __missing__(self, name):
        return 0


BATCHED = Batching(
    batched=True,
    decided_by="proof",
    verdict="independent",
    reason="made up",
    input_axes=_First(),
    output_axes=_First(),
    rows_first=True,
)
UNBATCHED = Batching(batched=False, decided_by="proof", verdict="unknown", reason="made up")
