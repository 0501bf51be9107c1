"""Opened experts compute what the packed ones do, with a layer for each matrix."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from panther.nn.experts import RoutedExperts, StackedExperts

EXPERTS, WIDTH, INNER = 4, 12, 20


class Packed(nn.Module):
    """Experts whose forward computes every expert for every row in float64, and weighs them."""

    def __init__(self, *, gated=True, transposed=False, bias=False):
        super().__init__()
        self.num_experts, self.act_fn, self.transposed = EXPERTS, nn.SiLU(), transposed
        first = "gate_up_proj" if gated else "up_proj"
        for name, d_out, d_in in ((first, INNER * (1 + gated), WIDTH), ("down_proj", WIDTH, INNER)):
            shape = (d_in, d_out) if transposed else (d_out, d_in)
            self.register_parameter(name, nn.Parameter(torch.randn(EXPERTS, *shape) / 4))
            if bias:
                self.register_parameter(f"{name}_bias", nn.Parameter(torch.randn(EXPERTS, d_out)))

    def product(self, name, x):
        """(E, n, d_in) → (E, n, d_out)."""
        W = getattr(self, name).double()
        y = x @ (W if self.transposed else W.mT)
        bias = getattr(self, f"{name}_bias", None)
        return y if bias is None else y + bias.double().unsqueeze(1)

    def every(self, x):
        if hasattr(self, "gate_up_proj"):
            gate, up = self.product("gate_up_proj", x).chunk(2, -1)
            return self.product("down_proj", self.act_fn(gate) * up)
        return self.product("down_proj", self.act_fn(self.product("up_proj", x)))

    def forward(self, hidden_states, top_k_index, top_k_weights):
        y = self.every(hidden_states.double().expand(EXPERTS, -1, -1))
        weights = torch.zeros(len(hidden_states), EXPERTS + 1, dtype=torch.float64)
        weights.scatter_add_(1, top_k_index, top_k_weights.double())
        return torch.einsum("end,ne->nd", y, weights[:, :EXPERTS])


KINDS = [{}, {"gated": False}, {"transposed": True, "bias": True}, {"bias": True}]


def routed(rows=9):
    index = torch.stack([torch.randperm(EXPERTS)[:2] for _ in range(rows)])
    return torch.randn(rows, WIDTH), index, torch.rand(rows, 2)


@pytest.mark.parametrize("options", KINDS, ids=str)
def test_routed_experts_give_the_sum_over_all_experts(options):
    torch.manual_seed(0)
    packed = Packed(**options)
    ours = RoutedExperts(packed, transposed=packed.transposed)
    x, index, weights = routed()
    expected = packed(x, index, weights)
    assert (ours(x, index, weights) - expected).abs().max() < 1e-5 * expected.abs().max()
    # an index of no expert counts for nothing; a row without any is zero
    index[0], index[1, 0] = EXPERTS, EXPERTS
    expected = packed(x, index, weights)
    y = ours(x, index, weights)
    assert (y - expected).abs().max() < 1e-5 * expected.abs().max()
    assert not y[0].any()


def test_experts_without_rows_are_not_called():
    torch.manual_seed(0)
    ours = RoutedExperts(Packed(), transposed=False)
    called = []
    for index, layer in enumerate(ours.down):
        layer.register_forward_hook(lambda *_, index=index: called.append(index))
    x, _, weights = routed()
    ours(x, torch.tensor([[0, 2]] * len(x)), weights)
    assert called == [0, 2]


def test_one_traced_graph_serves_any_routing():
    torch.manual_seed(0)
    packed = Packed()
    ours = RoutedExperts(packed, transposed=False).eval()
    x, _, weights = routed()
    rows = torch.export.Dim("rows", min=2, max=64)
    traced = torch.export.export(
        ours, (x, torch.tensor([[0, 1]] * len(x)), weights), dynamic_shapes=({0: rows}, {0: rows}, {0: rows})
    ).module()
    given = routed(5)
    assert torch.allclose(traced(*given), packed(*given).float(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("options", KINDS, ids=str)
def test_stacked_experts_take_rows_by_expert(options):
    torch.manual_seed(0)
    packed = Packed(**options)
    x = torch.randn(EXPERTS * 3, WIDTH)
    expected = packed.every(x.view(EXPERTS, 3, WIDTH).double()).flatten(0, 1)
    y = StackedExperts(packed, transposed=packed.transposed)(x)
    assert (y - expected).abs().max() < 1e-5 * expected.abs().max()


def test_a_gate_of_the_class_is_used():
    class Interleaved(Packed):
        def _apply_gate(self, both):
            return both[..., ::2].sigmoid() * both[..., 1::2] * self.scale

    torch.manual_seed(0)
    packed = Interleaved()
    packed.scale = 3.0
    ours = RoutedExperts(packed, transposed=False)
    x = torch.randn(5, WIDTH)
    inner = x @ packed.gate_up_proj[1].T
    expected = (inner[:, ::2].sigmoid() * inner[:, 1::2] * 3.0) @ packed.down_proj[1].T
    assert torch.allclose(ours.expert(1, x), expected, atol=1e-5)
    assert torch.allclose(copy.deepcopy(ours).expert(1, x), expected, atol=1e-5)


def test_weights_are_views_until_they_get_memory_of_their_own():
    packed = Packed(transposed=True, bias=True).requires_grad_(requires_grad=False)
    ours = RoutedExperts(packed, transposed=True)
    assert ours.gate_up[1].weight.untyped_storage().data_ptr() == packed.gate_up_proj.untyped_storage().data_ptr()
    ours.own_memory()
    weight, bias = ours.gate_up[1].weight, ours.gate_up[1].bias
    assert torch.equal(weight, packed.gate_up_proj[1].T)
    assert torch.equal(bias, packed.gate_up_proj_bias[1])
    assert weight.untyped_storage().nbytes() == weight.nbytes
    assert bias.untyped_storage().nbytes() == bias.nbytes
    assert not weight.requires_grad


def test_hooks_mode_and_options_are_taken_over():
    packed = Packed().eval()
    seen = []
    packed.register_forward_hook(lambda *_: seen.append(True))
    ours = RoutedExperts(packed, transposed=False)
    ours(*routed())
    assert seen == [True]
    assert not ours.training
    assert ours.num_experts == EXPERTS
