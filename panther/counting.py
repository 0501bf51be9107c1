"""Parameter and multiply-add counts of a sketched layer and its dense twin."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class ParameterCount:
    """Parameter counts of three kinds, kept apart.

    Attributes:
        dense: of the dense twin, d_in·d_out + d_out a layer.
        learnable: S1s, S2s and bias: Lk(d_in + d_out) + d_out a layer.
        fixed: U1s and U2s: Lk(d_in + d_out) a layer.
    """

    dense: int
    learnable: int
    fixed: int

    def __add__(self, other: ParameterCount) -> ParameterCount:
        return ParameterCount(self.dense + other.dense, self.learnable + other.learnable, self.fixed + other.fixed)

    @property
    def stored(self) -> int:
        """Learnable and fixed together."""
        return self.learnable + self.fixed

    @property
    def learnable_reduction_percent(self) -> float:
        """100 · (1 - learnable / dense)."""
        return _reduction_percent(self.learnable, self.dense)

    @property
    def stored_reduction_percent(self) -> float:
        """100 · (1 - stored / dense)."""
        return _reduction_percent(self.stored, self.dense)


def count_parameters(
    in_features: int, out_features: int, num_terms: int, low_rank: int, *, bias: bool = True
) -> ParameterCount:
    """Count the parameters of a sketched layer and of its dense twin.

    >>> count_parameters(4096, 4096, num_terms=4, low_rank=128)
    ParameterCount(dense=16781312, learnable=4198400, fixed=4194304)
    """
    sketch = num_terms * low_rank * (in_features + out_features)
    bias_size = out_features if bias else 0
    return ParameterCount(dense=in_features * out_features + bias_size, learnable=sketch + bias_size, fixed=sketch)


def multiply_adds_per_row(in_features: int, out_features: int, num_terms: int, low_rank: int) -> int:
    """Multiply-adds of (x @ A) @ B for one row x; the dense layer takes in_features · out_features.

    >>> multiply_adds_per_row(784, 512, num_terms=2, low_rank=64)
    331776
    """
    return 2 * num_terms * low_rank * (in_features + out_features)


def count_conv_parameters(
    channels: tuple[int, int], positions: int, ranks: tuple[int, int], *, groups: int = 1, bias: bool = True
) -> ParameterCount:
    """Count the parameters of a sketched convolution and of its dense twin.

    Args:
        channels: in and out.
        positions: of the kernel, the product of its sizes.
        ranks: learned and fixed channels of a group between the two convolutions: those after S1s, those after U2s.
        groups: of the convolution.
        bias: whether it has one.

    >>> count_conv_parameters((64, 128), 9, (16, 16))
    ParameterCount(dense=73856, learnable=27776, fixed=3072)
    """
    c_in, c_out = channels
    after_S1, after_U2 = ranks
    bias_size = c_out if bias else 0
    return ParameterCount(
        dense=c_in // groups * c_out * positions + bias_size,
        learnable=(after_S1 * c_in + after_U2 * c_out) * positions + bias_size,
        fixed=after_S1 * c_out + after_U2 * c_in,
    )


def conv_multiply_adds_per_position(
    channels: tuple[int, int], positions: int, ranks: tuple[int, int], input_positions: int = 1
) -> int:
    """Multiply-adds of a sketched convolution for one position of its output, borders left out.

    The 1x1 convolution by U2s runs at every position of the input; all others at those of the output alone.

    Args:
        channels, positions, ranks: as for `count_conv_parameters`.
        input_positions: of the input for one of the output, the product of the strides.

    >>> conv_multiply_adds_per_position((64, 128), 9, (32, 0))
    22528
    """
    c_in, c_out = channels
    after_S1, after_U2 = ranks
    return after_S1 * (c_in * positions + c_out) + after_U2 * (c_in * input_positions + c_out * positions)


def check_parameter_efficiency(
    in_features: int, out_features: int, num_terms: int, low_rank: int
) -> tuple[bool, float]:
    """Check whether a sketched layer stores fewer weights than the dense one: 2Lk(d_in + d_out) < d_in·d_out.

    Both sides leave out the bias, which is the same for both. The fixed matrices count as stored.

    Returns:
        Whether it does, and the reduction in percent (negative when the layer is larger than dense).

    >>> check_parameter_efficiency(1024, 512, num_terms=2, low_rank=32)
    (True, 62.5)
    """
    dense = in_features * out_features
    sketched = 2 * num_terms * low_rank * (in_features + out_features)
    return sketched < dense, _reduction_percent(sketched, dense)


@dataclass(frozen=True)
class StartingPoint:
    """A starting point for square layers with min_features to max_features (None: no limit).

    Attributes:
        min_features, max_features: its range, both included.
        num_terms, low_rank: the choice.
        stored_reduction_percent: of the smallest and of the largest layer of the range (of one of 8,192 where there is
            no limit), without the bias.
    """

    min_features: int
    max_features: int | None
    num_terms: int
    low_rank: int

    @property
    def stored_reduction_percent(self) -> tuple[float, float]:
        """The reductions at both ends of the range."""
        ends = (self.min_features, self.max_features or 8192)
        low, high = (check_parameter_efficiency(d, d, self.num_terms, self.low_rank)[1] for d in ends)
        return low, high


# Corrects the tutorial's table of starting points, whose rows break its rule of thumb: 1024x1024 with 8 terms of
# low_rank 64 is twice the size of dense.
STARTING_POINTS = (
    StartingPoint(128, 255, num_terms=1, low_rank=16),
    StartingPoint(256, 511, num_terms=2, low_rank=16),
    StartingPoint(512, 1023, num_terms=2, low_rank=32),
    StartingPoint(1024, 2047, num_terms=2, low_rank=64),
    StartingPoint(2048, 4095, num_terms=4, low_rank=64),
    StartingPoint(4096, None, num_terms=4, low_rank=128),
)


def suggest(
    in_features: int,
    out_features: int,
    *,
    reduction: float = 0.5,
    count: Literal["stored", "learnable"] = "stored",
    max_terms: int = 16,
) -> list[tuple[int, int]]:
    """List the (num_terms, low_rank) pairs with which a sketched layer is smaller than dense by a given share.

    For each number of terms 1, 2, 4, … the largest rank that still reaches the reduction, rounded down to a multiple
    of 8 where it is over 8. All pairs have much the same size; a higher rank in fewer terms runs at the same speed.

    Args:
        in_features, out_features: of the layer, whose bias is counted on both sides.
        reduction: the share of the dense layer's parameters to save: 0.75, or in percent, 75 (from 1 on).
        count: what is compared with the dense layer: everything stored, S and U, as on disk and in memory with U as
            floats; or the learnable part alone, which is what training touches and what a compact checkpoint costs.
        max_terms: the largest number of terms to list.

    Returns:
        The pairs by ascending number of terms; none if not even one term of rank 1 reaches the reduction.

    Raises:
        ValueError: an argument is out of range.

    >>> suggest(4096, 4096, reduction=0.5)
    [(1, 504), (2, 248), (4, 120), (8, 56), (16, 24)]
    >>> suggest(4096, 4096, reduction=75, count="learnable")
    [(1, 504), (2, 248), (4, 120), (8, 56), (16, 24)]
    """
    for name, size in (("in_features", in_features), ("out_features", out_features), ("max_terms", max_terms)):
        if size < 1:
            raise ValueError(f"{name} ({size}) must be at least 1")
    if count not in ("stored", "learnable"):
        raise ValueError(f"count ({count!r}) must be 'stored' or 'learnable'")
    if not 0 <= reduction < 100:
        raise ValueError(f"reduction ({reduction}) must be a share from 0 to below 1, or a percentage below 100")
    percent = 100 * reduction if reduction < 1 else reduction
    sides = (in_features + out_features) * (2 if count == "stored" else 1)
    dense = in_features * out_features + out_features
    budget = dense * (1 - percent / 100) - out_features
    pairs = []
    num_terms = 1
    while num_terms <= max_terms:
        # tolerance: 1 - 0.9 is less than 0.1 in binary
        low_rank = int((budget + 1e-9 * dense) / (num_terms * sides))
        if low_rank > 8:
            low_rank -= low_rank % 8
        if low_rank >= 1:
            pairs.append((num_terms, low_rank))
        num_terms *= 2
    return pairs


def _reduction_percent(ours: int, dense: int) -> float:
    return (1 - ours / dense) * 100
