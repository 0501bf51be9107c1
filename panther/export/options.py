"""Options of an export, validated at the call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from panther.export import card as cards
from panther.export import ort
from panther.export.card import CompressionCurve
from panther.export.graph.precision import PRECISIONS, TOLERANCES
from panther.export.ort import Target
from panther.export.publish.repository import check_name

# protobuf messages are limited to 2 GiB; larger weights go into a file beside the model
EXTERNAL_DATA_BYTES = 1_800_000_000


@dataclass(frozen=True)
class About:
    """Descriptive part of the card: training, purpose, author, compression."""

    training: cards.Training | None = None
    description: str | None = None
    license: str | None = None
    authors: Sequence[str] = ()
    preprocessing: str | None = None
    compression_curve: CompressionCurve | None = None


@dataclass(frozen=True)
class ExportOptions:
    """The keywords of `export_onnx` as one object; they are explained there.

    Raises:
        ValueError: an option is wrong; says which, and what it may be.
    """

    name: str
    inputs: Sequence[cards.Input] | None = None
    outputs: Sequence[cards.Output] | None = None
    dynamic_axes: Mapping[str, Mapping[int, str]] | None = None
    plan: str | Mapping[str, str] = "auto"
    u_storage: str = "bits"
    precision: str = "float32"
    target: str = "cpu"
    num_threads: int | None = None
    batch_sizes: Sequence[int] = (1, 8, 64)
    max_weight_bytes: int | None = None
    tolerance: float | None = None
    external_data_bytes: int = EXTERNAL_DATA_BYTES
    conditional: str | None = None
    about: About = field(default_factory=About)

    def __post_init__(self) -> None:
        check_name(self.name)
        _one_of("u_storage", self.u_storage, ("bits", "float"))
        _one_of("precision", self.precision, PRECISIONS)
        if not self.batch_sizes or min(self.batch_sizes) < 1:
            raise ValueError(f"batch_sizes ({list(self.batch_sizes)}) must be positive, and at least one")
        if self.tolerance is not None and not self.tolerance > 0:
            raise ValueError(f"tolerance ({self.tolerance}) must be positive")
        # rejects an unknown device, and num_threads below 1
        _ = self.measured_on

    @property
    def measured_on(self) -> Target:
        """The device and the threads that plans are measured on."""
        return Target(self.target, self.num_threads if self.num_threads is not None else ort.available_cores())

    def largest_error(self, *, int8: bool = False) -> float:
        """The relative error up to which a file is published: the caller's, else that of the precision.

        Args:
            int8: the file rounds activations to 8 bits: one between two steps may fall either way.
        """
        if self.tolerance is not None:
            return self.tolerance
        return TOLERANCES["int8" if int8 else self.precision]

    @property
    def dtype(self) -> type[np.floating]:
        """The type of the constants in the graph, before they are quantized."""
        return np.float16 if self.precision == "float16" else np.float32

    @property
    def transpose_dense(self) -> bool:
        """Whether dense layers are computed by transposed weights; the quantizer takes plain products alone."""
        return self.target == "cuda" and self.precision != "int8"

    @property
    def fold(self) -> bool:
        """Whether constants are stored in their compact form, and folded when the file is loaded."""
        return self.u_storage == "bits" and self.precision != "int8"


def _one_of(argument: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ValueError(f"{argument} ({value!r}) must be one of {list(allowed)}")
