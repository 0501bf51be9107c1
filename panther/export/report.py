"""The result of an export."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.text import Text

from panther.export.card import ModelCard
from panther.export.inspection import convolution_table, embedding_table, layer_table, measured_table

_WIDTH = 140


@dataclass(frozen=True)
class ExportReport:
    """The result of an export: path, card and measurements.

    Attributes:
        path: of the file.
        version: in the repository; None when the file was written to a path of the caller's.
        file_bytes: size of the file, with its external data.
        card: what the file says of itself: plans, measured times, errors.
    """

    path: Path
    version: int | None
    file_bytes: int
    card: ModelCard

    def __str__(self) -> str:
        """The layers, and what was measured: with what, and in which units."""
        card = json.loads(self.card.to_json())
        console = Console(file=io.StringIO(), width=_WIDTH)
        version = "" if self.version is None else f", version {self.version} of {self.card.name!r}"
        console.print(Text(f"{self.path}{version}"), soft_wrap=True)
        if card["layers"]:
            console.print(layer_table(card))
        if card.get("convolutions"):
            console.print(convolution_table(card))
        if card.get("embeddings"):
            console.print(embedding_table(card))
        console.print(measured_table(card, self.file_bytes))
        for note in self.card.notes or ():
            console.print(Text(f"note: {note}"), soft_wrap=True)
        lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
        return "\n".join(line.rstrip() for line in lines)
