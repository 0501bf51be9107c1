"""Card entries that were measured: comparison with torch, planned products, and latency."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class OutputError:
    """The errors of one output."""

    name: str
    max_absolute_error: float
    max_relative_error: float
    mean_relative_error: float


@dataclass(frozen=True)
class Check:
    """The comparison with torch that the file passed before it was published.

    A relative error is |y - reference| over the largest |reference| of the same output.

    Attributes:
        left_out: how many values were not compared: a mask hides the whole row, and one side is not defined there.
    """

    reference: str
    runtime: str
    rows: int
    max_absolute_error: float
    max_relative_error: float
    mean_relative_error: float
    tolerance: float
    outputs: tuple[OutputError, ...] = ()
    left_out: int | None = None


@dataclass(frozen=True)
class PlannedSite:
    """The planned computation of a site: one sketched layer, or several in a row that are computed as one linear map.

    Attributes:
        layers: its sketched layers.
        plan: "two_products" or "dense".
        reason: why, in a few words.
        weight_bytes: of the matrices that it multiplies by, resident.
        median_us: for each plan that was measured, a time for each batch size.
    """

    layers: list[str]
    plan: str
    reason: str
    weight_bytes: int
    median_us: dict[str, list[float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Planning:
    """How the plans were decided.

    Attributes:
        device, num_threads, runtime: of the measurement.
        batch_sizes: rows of the measured runs.
        sites: each linear map, its plan, the reason, and the median times of what was measured.
    """

    device: str
    num_threads: int
    runtime: str
    batch_sizes: tuple[int, ...]
    sites: tuple[PlannedSite, ...]


@dataclass(frozen=True)
class Latency:
    """Median times of one run of the whole file and of its dense twin, measured in turn, one for each batch size."""

    device: str
    num_threads: int
    batch_sizes: tuple[int, ...]
    median_us: tuple[float, ...]
    dense_twin_median_us: tuple[float, ...]
