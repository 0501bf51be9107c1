"""Readiness: the models that the server must serve, and those of them that are not served."""

import logging
from collections.abc import Collection, Iterable, Mapping

from app.repository.versions import Entry

log = logging.getLogger(__name__)

UNLOADED = "unloaded"


class Readiness:
    """The models that must be served for the server to be ready.

    These are the ``required`` ones, otherwise those in the folder at the start of the server, plus every model that was
    served once. A model that a client unloads, or with a removed folder, no longer counts, unless it is required.

    Args:
        required: Models that must be served; None for those in the folder at the start.
        strict: Whether every model of the folder counts, whenever it was added.
    """

    def __init__(self, required: Collection[str] | None = None, *, strict: bool = False) -> None:
        self.required = None if required is None else tuple(required)
        self.strict = strict
        self._owed: frozenset[str] = frozenset()
        self._told: list[str] | None = None

    @property
    def owed(self) -> frozenset[str]:
        """The models that count now."""
        return self._owed.union(self.required or ())

    def start(self, names: Iterable[str]) -> None:
        """Record the models of the folder at the start of the server."""
        if self.required is None:
            self._owed = self._owed.union(names)

    def update(self, entries: Mapping[str, Entry], *, starting: bool) -> None:
        """Update the served models, and log changes of their readiness.

        Args:
            entries: Known models by name.
            starting: Whether models are still loading, so their readiness is unknown.
        """
        served = {name for name, entry in entries.items() if entry.served is not None}
        gone = {name for name in self._owed if name not in entries or entries[name].reason == UNLOADED}
        if not starting:
            self._owed = self._owed - gone | served
            problems = self.problems(entries)
            if self._told is not None and problems != self._told:
                if problems:
                    log.error("not ready: %s", "; ".join(problems))
                else:
                    log.info("ready again: serving %s", ", ".join(sorted(served)))
            self._told = problems

    def problems(self, entries: Mapping[str, Entry]) -> list[str]:
        """Reasons why the server is not ready, one line per model; empty if it is ready."""
        missing = [f"{name}: it is not in the model folder" for name in self.required or () if name not in entries]
        if not entries and not missing:
            return ["no model was found; the model folder must contain NAME/VERSION/model.onnx"]
        served_any = any(entry.served is not None for entry in entries.values())
        all_count = self.strict or not (served_any or self.owed)
        return missing + [
            f"{entry.name}: {entry.reason}"
            for entry in entries.values()
            if entry.served is None and (all_count or entry.name in self.owed) and self._counts(entry)
        ]

    def _counts(self, entry: Entry) -> bool:
        return entry.reason != UNLOADED or entry.name in (self.required or ())
