"""Subclasses of nn.Linear with another forward: those that compute x Wᵀ + b are converted, the others stay dense."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import panther as pr
from panther.convert.subclasses import computes_linear


class Product(nn.Linear):
    """As FalconLinear of transformers."""

    def forward(self, x):
        hidden = x @ self.weight.T
        return hidden if self.bias is None else hidden + self.bias


class Transposed(nn.Linear):
    def forward(self, x):
        return self.bias + torch.matmul(x, self.weight.transpose(-1, -2))


class Calls(nn.Linear):
    def forward(self, x):
        return super().forward(x)


class Scaled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


class WithoutBias(nn.Linear):
    def forward(self, x):
        return F.linear(x, self.weight)


class BiasTwice(nn.Linear):
    def forward(self, x):
        return F.linear(x, self.weight, self.bias) + self.bias


class WrongWay(nn.Linear):
    def forward(self, x):
        return x @ self.weight + self.bias


class Branches(nn.Linear):
    def forward(self, x):
        return super().forward(x) if x.sum() > 0 else x


class Drops(nn.Linear):
    def forward(self, x):
        return F.dropout(super().forward(x), 0.1, self.training)


class RowsOnly(nn.Linear):
    def forward(self, x):
        return super().forward(x) if x.dim() == 2 else x


class Rounds(nn.Linear):
    def forward(self, x):
        return super().forward(x.half().float())


@pytest.mark.parametrize("kind", [Product, Transposed, Calls])
@pytest.mark.parametrize("training", [False, True])
def test_another_way_to_write_the_product_is_recognised(kind, training):
    layer = kind(8, 8).train(training)
    assert computes_linear(layer)
    assert layer.training is training


def test_a_layer_without_bias_is_recognised():
    assert computes_linear(Product(8, 6, bias=False))


@pytest.mark.parametrize("kind", [Scaled, WithoutBias, BiasTwice, WrongWay, Branches, Drops, RowsOnly, Rounds])
def test_anything_else_is_not(kind):
    layer = kind(8, 8).eval()
    assert not computes_linear(layer)
    assert not layer.training


def test_such_a_layer_is_converted_and_computes_the_same_at_full_rank():
    torch.manual_seed(0)
    low_rank = torch.randn(64, 16) @ torch.randn(16, 64)
    model = nn.Sequential(Product(64, 64), nn.ReLU(), Scaled(64, 64))
    model[0].weight.data = low_rank
    x = torch.randn(5, 64)
    expected = model(x)
    report = pr.sketch_(model, ratio=0.8)
    assert report.replaced == ("0",)
    assert torch.allclose(model(x), expected, atol=1e-3, rtol=1e-4)
