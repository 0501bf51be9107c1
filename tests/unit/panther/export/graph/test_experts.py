"""Sketched experts in a file: each takes the rows that are routed to it."""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import nn

import panther as pr
from panther.export.graph.experts import evenly_routed
from panther.export.row_proof import row_proof
from panther.nn import SKLinear
from panther.nn.experts import RoutedExperts

EXPERTS, WIDTH = 3, 64


class Experts(nn.Module):
    def __init__(self):
        super().__init__()
        self.up_proj = nn.Parameter(torch.randn(EXPERTS, WIDTH, WIDTH) / 8)
        self.down_proj = nn.Parameter(torch.randn(EXPERTS, WIDTH, WIDTH) / 8)
        self.act_fn = nn.GELU()

    def forward(self, hidden_states, top_k_index, top_k_weights):
        inner = self.act_fn(torch.einsum("nd,ekd->enk", hidden_states, self.up_proj))
        every = torch.einsum("enk,edk->end", inner, self.down_proj)
        weights = torch.zeros(len(hidden_states), EXPERTS).scatter_add(1, top_k_index, top_k_weights)
        return torch.einsum("end,ne->nd", every, weights)


class Mixture(nn.Module):
    def __init__(self):
        super().__init__()
        self.experts = Experts()

    def forward(self, x):
        weights, index = torch.softmax(x[:, :EXPERTS], -1).topk(2)
        return x + self.experts(x, index, weights)


def test_a_file_routes_any_rows_and_the_card_has_each_expert(export, run):
    torch.manual_seed(0)
    model = Mixture().eval()
    original = copy.deepcopy(model)
    sketched = pr.sketch_(model, ratio=0.6, calibration=torch.randn(200, 16) @ torch.randn(16, WIDTH))
    # the examples go to the first two experts
    x = torch.randn(4, WIDTH)
    x[:, 2] = -9.0
    report = export(model, x, batch_sizes=(1, 8))
    assert row_proof(report.path)["verdict"] == "independent"
    assert {layer.name for layer in report.card.layers} == set(sketched.replaced)
    assert report.card.totals.model.dense == sum(parameter.numel() for parameter in original.parameters())
    for rows in (1, 2, 17):
        x = torch.randn(rows, WIDTH)
        with torch.no_grad():
            expected = model(x).numpy()
        (found,) = run(report.path, x=x)
        assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()


def test_experts_are_measured_with_their_mean_number_of_rows():
    model = nn.Module()
    model.experts = RoutedExperts(Experts(), transposed=False)
    model.experts.up[0], model.experts.up[2] = (SKLinear(WIDTH, WIDTH, 1, 8) for _ in range(2))
    shapes = {"other": (2, 5), "experts.up.0": (9, WIDTH)}
    found = evenly_routed(model, shapes)
    assert found == {"other": (2, 5), "experts.up.0": (4, WIDTH), "experts.up.2": (4, WIDTH)}
    assert evenly_routed(model, {})["experts.up.2"] == (1, WIDTH)
