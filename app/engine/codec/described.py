"""Description of a model for a codec; it can be sent to another process."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from app.runtime.batching import Batching
from app.runtime.card import Column
from app.runtime.signature import HasSignature

__all__ = ["Column", "DescribedModel", "Labels", "ModelDescription"]


class Labels(Protocol):
    """An output whose last axis has labels."""

    @property
    def name(self) -> str:
        """Name of the output."""
        ...

    @property
    def labels(self) -> Sequence[str] | None:
        """The labels, in the order of the axis."""
        ...


class DescribedModel(HasSignature, Protocol):
    """A model as codecs see it; see ``OnnxModel``."""

    name: str
    version: str
    takes_empty: bool
    takes_no_rows: bool
    batching: Batching

    @property
    def labelled(self) -> Labels | None:
        """The output that has labels, or None."""
        ...

    @property
    def columns(self) -> Sequence[Column] | None:
        """The columns of its only input, as the card names them, or None."""
        ...

    @property
    def output_labels(self) -> Mapping[str, Sequence[str]]:
        """The names of the entries of the last axis, of the outputs that have names in the card."""
        ...


@dataclass(frozen=True)
class LabelledOutput:
    """Interface of an output with labels; see ``Labels``."""

    name: str
    labels: tuple[str, ...]


class ModelDescription(HasSignature):
    """A model as codecs see it, without its session.

    Args:
        model: the model to describe.
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
