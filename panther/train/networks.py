"""The tutorial's network, dense and sketched, for data of any width."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from panther.counting import check_parameter_efficiency
from panther.nn import SKLinear

HIDDEN = (512, 256)
# (num_terms, low_rank) of the three layers, as in the tutorial
SKETCH = ((2, 64), (2, 32), (1, 4))


class ThreeLayerNet(nn.Module):
    """in_features → 512 → 256 → classes with ReLU between: the tutorial's network.

    Args:
        in_features: width of a row.
        num_classes: width of the output: logits, or the values of a regression.
        sketched: make each layer an SKLinear where that stores fewer weights than nn.Linear; all dense otherwise.
        mean, std: (in_features,) each: when given, rows are standardized by them first.
        target_mean, target_std: (num_classes,) each, of the targets: when given, the outputs are in their unit.

    >>> net = ThreeLayerNet(784, 10, sketched=True)
    >>> net(torch.zeros(2, 784)).shape
    torch.Size([2, 10])
    """

    mean: Tensor | None
    std: Tensor | None
    target_mean: Tensor | None
    target_std: Tensor | None

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        sketched: bool,
        mean: Tensor | None = None,
        std: Tensor | None = None,
        target_mean: Tensor | None = None,
        target_std: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)
        self.register_buffer("target_mean", target_mean)
        self.register_buffer("target_std", target_std)
        widths = (in_features, *HIDDEN, num_classes)
        layers = [
            _linear(d_in, d_out, *terms, sketched=sketched)
            for d_in, d_out, terms in zip(widths, widths[1:], SKETCH, strict=False)
        ]
        self.fc1, self.fc2, self.fc3 = layers

    def forward(self, x: Tensor) -> Tensor:
        """Map rows (N, in_features) to logits or values (N, num_classes)."""
        if self.mean is not None and self.std is not None:
            x = (x - self.mean) / self.std
        x = torch.relu(self.fc1(x))
        x = torch.relu(self.fc2(x))
        y: Tensor = self.fc3(x)
        if self.target_mean is not None and self.target_std is not None:
            y = y * self.target_std + self.target_mean
        return y


def _linear(d_in: int, d_out: int, num_terms: int, low_rank: int, *, sketched: bool) -> nn.Module:
    if sketched and check_parameter_efficiency(d_in, d_out, num_terms, low_rank)[0]:
        return SKLinear(d_in, d_out, num_terms, low_rank)
    return nn.Linear(d_in, d_out)
