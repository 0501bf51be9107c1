"""The tutorial's network, dense and sketched, for data of any width."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from panther.efficiency import check_parameter_efficiency
from panther.nn import SKLinear

HIDDEN = (512, 256)
# (num_terms, low_rank) of the three layers, as in the tutorial
SKETCH = ((2, 64), (2, 32), (1, 4))


class ThreeLayerNet(nn.Module):
    """in_features → 512 → 256 → classes with ReLU between: the tutorial's network.

    Args:
        in_features: width of a row.
        num_classes: width of the output, logits.
        sketched: make each layer an SKLinear where that stores fewer weights than nn.Linear; all dense otherwise.
        mean, std: (in_features,) each: when given, rows are standardised by them first.

    >>> net = ThreeLayerNet(784, 10, sketched=True)
    >>> net(torch.zeros(2, 784)).shape
    torch.Size([2, 10])
    """

    mean: Tensor | None
    std: Tensor | None

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        sketched: bool,
        mean: Tensor | None = None,
        std: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)
        widths = (in_features, *HIDDEN, num_classes)
        layers = [
            _linear(d_in, d_out, *terms, sketched=sketched)
            for d_in, d_out, terms in zip(widths, widths[1:], SKETCH, strict=False)
        ]
        self.fc1, self.fc2, self.fc3 = layers

    def forward(self, x: Tensor) -> Tensor:
        """Map rows (N, in_features) to logits (N, num_classes)."""
        if self.mean is not None and self.std is not None:
            x = (x - self.mean) / self.std
        x = torch.relu(self.fc1(x))
        x = torch.relu(self.fc2(x))
        return self.fc3(x)  # type: ignore[no-any-return]


def _linear(d_in: int, d_out: int, num_terms: int, low_rank: int, *, sketched: bool) -> nn.Module:
    if sketched and check_parameter_efficiency(d_in, d_out, num_terms, low_rank)[0]:
        return SKLinear(d_in, d_out, num_terms, low_rank)
    return nn.Linear(d_in, d_out)
