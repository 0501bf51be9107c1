"""The arithmetic of what a sketched layer costs, beside the dense layer it stands for."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ParameterCount:
    """Numbers of parameters; the three kinds are never added up silently.

    Attributes:
        dense: of the nn.Linear (or the model of them) that is stood for: d_in·d_out + d_out a layer.
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


def check_parameter_efficiency(
    in_features: int, out_features: int, num_terms: int, low_rank: int
) -> tuple[bool, float]:
    """Say whether a sketched layer stores fewer weights than the dense one: 2Lk(d_in + d_out) < d_in·d_out.

    Both sides leave out the bias, which is the same for both. The fixed matrices count as stored.

    Returns:
        Whether it does, and the reduction in percent (negative when the layer is larger than dense).

    >>> check_parameter_efficiency(1024, 512, num_terms=2, low_rank=32)
    (True, 62.5)
    """
    dense = in_features * out_features
    sketched = 2 * num_terms * low_rank * (in_features + out_features)
    return sketched < dense, _reduction_percent(sketched, dense)


def _reduction_percent(ours: int, dense: int) -> float:
    return (1 - ours / dense) * 100
