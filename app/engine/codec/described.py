"""Description of a model for a codec; can be sent to another process."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from app.runtime.batching import Batching
from app.runtime.card import Column
from app.runtime.signature import HasSignature

__all__ = ["Column", "DescribedModel", "Labels", "ModelDescription"]


class Labels(Protocol):
    """An output with labels for its last axis."""

    @property
    def name(self) -> str:
        """Name of the output."""
        ...

    @property
    def labels(self) -> Sequence[str] | None:
        """Labels in the order of the axis."""
        ...


class DescribedModel(HasSignature, Protocol):
    """Codec's view of a model; see ``OnnxModel``."""

    name: str
    version: str
    takes_empty: bool
    takes_no_rows: bool
    batching: Batching

    @property
    def labelled(self) -> Labels | None:
        """The output with labels, or None."""
        ...

    @property
    def columns(self) -> Sequence[Column] | None:
        """The columns of the only input, from the card, or None."""
        ...

    @property
    def output_labels(self) -> Mapping[str, Sequence[str]]:
        """Names of the entries of the last axis, for each output with names in the card."""
        ...


@dataclass(frozen=True)
class LabelledOutput:
    """Interface of an output with labels; see ``Labels``."""

    name: str
    labels: tuple[str, ...]


class ModelDescription(HasSignature):
    """Codec's view of a model, without a session.

    Args:
        model: The model to describe.
    """

    def __init__(self, model: DescribedModel) -> None:
        self.signature = model.signature
        self.name = model.name
        self.version = model.version
        self.takes_empty = model.takes_empty
        self.takes_no_rows = model.takes_no_rows
        self.batching = model.batching
        self.columns = model.columns
        self.output_labels = model.output_labels
        self.labelled: Labels | None = None
        if model.labelled is not None:
            self.labelled = LabelledOutput(model.labelled.name, tuple(model.labelled.labels or ()))
