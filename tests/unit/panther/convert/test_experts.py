"""Experts: each fitted to the rows that are routed to it."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from torch import nn

import panther as pr
from panther.convert.experts import opened_experts, pool_moments
from panther.convert.layers import Place, Unit
from panther.convert.moments import Moments
from panther.convert.opened import opened
from panther.nn import SKLinear
from panther.nn.experts import GatedExperts, RoutedExperts, StackedExperts

EXPERTS, WIDTH = 4, 64


class Experts(nn.Module):
    """As transformers lays them out."""

    def __init__(self, experts=EXPERTS, width=WIDTH):
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.randn(experts, 2 * width, width) / 8)
        self.down_proj = nn.Parameter(torch.randn(experts, width, width) / 8)
        self.act_fn = nn.SiLU()

    def forward(self, hidden_states, top_k_index, top_k_weights):
        y = torch.zeros_like(hidden_states)
        for row in range(len(hidden_states)):
            for expert, weight in zip(top_k_index[row], top_k_weights[row], strict=True):
                gate, up = (self.gate_up_proj[expert] @ hidden_states[row]).chunk(2)
                y[row] += weight * (self.down_proj[expert] @ (self.act_fn(gate) * up))
        return y


class Mixture(nn.Module):
    """Rows routed by their first entries."""

    def __init__(self, experts=None):
        super().__init__()
        self.experts = Experts() if experts is None else experts

    def forward(self, x):
        weights, index = torch.softmax(x[:, :EXPERTS], -1).topk(2)
        return self.experts(x, index, weights)


def rows(count=200):
    random = torch.Generator().manual_seed(3)
    return torch.randn(count, 8, generator=random) @ torch.randn(8, WIDTH, generator=random)


def test_each_matrix_of_an_expert_is_a_layer_and_the_file_restores_it(tmp_path):
    torch.manual_seed(0)
    model, x = Mixture().eval(), rows()
    original = copy.deepcopy(model)
    report = pr.sketch_(model, ratio=0.6, calibration=x)
    assert {layer.name for layer in report.layers} == {
        f"experts.{name}.{index}" for name in ("gate_up", "down") for index in range(EXPERTS)
    }
    assert report.unreached == ()
    assert report.before.stored == sum(parameter.numel() for parameter in original.parameters())
    assert report.ratio <= 0.6
    with torch.no_grad():
        y, expected = model(x), original(x)
    measured = ((y - expected).norm() / expected.norm()).item()
    assert report.output_error == pytest.approx(measured, rel=1e-3)
    assert measured < 0.05
    stored = sum(p.numel() for p in model.parameters()) + sum(b.numel() for b in model.buffers())
    assert report.model_parameters_after == stored
    pr.save(model, tmp_path / "small.safetensors")
    fresh = copy.deepcopy(original)
    assert set(pr.restore_(fresh, tmp_path / "small.safetensors")) == set(report.replaced)
    assert torch.equal(fresh(x), model(x))


def test_experts_of_low_rank_come_out_as_they_were():
    torch.manual_seed(0)
    model = Mixture().eval()
    for weight in model.parameters():
        weight.data = weight.data[..., :16] @ weight.data[:, :16] / 2
    original, x = copy.deepcopy(model), torch.randn(300, WIDTH)
    report = pr.sketch_(model, ratio=0.42, calibration=x)
    assert len(report.replaced) == 2 * EXPERTS
    with torch.no_grad():
        expected = original(x)
        assert (model(x) - expected).abs().max() < 1e-5 * expected.abs().max()


def test_where_nothing_is_converted_the_experts_stay_packed():
    torch.manual_seed(0)
    model = Mixture().eval()
    experts = model.experts
    report = pr.sketch_(model, max_error=0.0, calibration=rows())
    assert report.replaced == ()
    assert model.experts is experts


def test_distillation_trains_the_experts():
    torch.manual_seed(0)
    model, x = Mixture().eval(), rows()
    original = copy.deepcopy(model)
    pr.sketch_(model, ratio=0.5)
    result = pr.distill_(model, original, x.split(50), steps=10, progress=False)
    assert result.error < result.error_before


def test_an_expert_that_saw_no_row_is_fitted_to_the_rows_of_the_others():
    torch.manual_seed(0)
    model = Mixture()
    x = rows()
    x[:, 3] = -20.0  # nothing goes to the last expert
    report = pr.sketch_(model.eval(), ratio=0.5, calibration=x)
    last = [layer for layer in report.layers if layer.name.endswith(".3")]
    assert all(layer.converted for layer in last)
    # inputs of rank 8 or so: the outputs are kept where the weight can't be
    first = next(layer for layer in last if "gate_up" in layer.name)
    assert first.data_error < 0.25 * first.weight_error


def test_moments_are_drawn_to_those_of_all_experts_by_few_rows():
    model = nn.Module()
    model.experts = RoutedExperts(Experts(2, 20), transposed=False)
    units = [Unit([Place(layer, [f"experts.down.{index}"])]) for index, layer in enumerate(model.experts.down)]
    seen = Moments(torch.eye(20).double() * 6, torch.ones(20).double() * 3, 3, torch.eye(20).double() * 5, calls=1)
    none = Moments(torch.zeros(20, 20).double(), torch.zeros(20).double())
    pool_moments(model, units, dict(zip(map(id, units), (seen, none), strict=True)))
    # a tenth of the width: two rows of the mean
    assert (seen.rows, none.rows, none.calls) == (5, 2, 1)
    for moments in (seen, none):
        assert torch.allclose(moments.covariance(centred=False), 2 * torch.eye(20).double())
        assert torch.allclose(moments.mean, torch.ones(20).double())
    # what they weigh stays that of the rows that were seen, and of one where there were none
    assert torch.allclose(seen.sensitivity, 5 * torch.eye(20).double())
    assert torch.allclose(none.sensitivity, 5 / 3 * torch.eye(20).double())


class Squared(Experts):
    def forward(self, hidden_states, top_k_index, top_k_weights):
        return super().forward(hidden_states, top_k_index, top_k_weights) ** 2


class WithNorm(Experts):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(WIDTH))


class Raising(Experts):
    def forward(self, hidden_states, top_k_index, top_k_weights):
        raise RuntimeError("needs a GPU")


@pytest.mark.parametrize("kind", [Squared, WithNorm, Raising, lambda: nn.Linear(4, 4)])
def test_experts_of_another_kind_are_left(kind):
    assert opened_experts(kind()) is None


def test_left_experts_are_named_with_the_reason():
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), Mixture(Squared()))
    report = pr.sketch_(model.eval(), ratio=0.9, calibration=rows(40))
    (group,) = report.unreached
    assert group.names == ("1.experts",)
    assert "experts, in a module that can't be opened" in group.reason


def test_experts_that_share_their_weights_are_left():
    model = nn.Sequential(Mixture(), Mixture(), nn.Linear(WIDTH, WIDTH)).eval()
    model[1].experts.down_proj = model[0].experts.down_proj
    report = pr.sketch_(model, ratio=0.9, calibration=rows(40))
    assert [layer.name for layer in report.layers] == ["2"]


SMALL = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4, "vocab_size": 64, "use_cache": False}
FAMILIES = {
    "Mixtral": {"num_key_value_heads": 2, "intermediate_size": 128, "num_local_experts": 8},
    "Qwen2Moe": {
        "num_key_value_heads": 2, "num_experts": 8, "num_experts_per_tok": 2,
        "moe_intermediate_size": 64, "shared_expert_intermediate_size": 64,
    },
    "GptOss": {
        "num_key_value_heads": 2, "head_dim": 16, "intermediate_size": 128,
        "num_local_experts": 8, "num_experts_per_tok": 2,
    },
}  # fmt: skip


@functools.cache
def of_transformers(name):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**SMALL, **FAMILIES[name])
    return getattr(transformers, f"{name}ForCausalLM")(config).eval()


@pytest.mark.parametrize("name", FAMILIES)
def test_of_mixtures_of_transformers_nearly_all_is_in_play(name, tmp_path):
    original = of_transformers(name)
    model = copy.deepcopy(original)
    random = torch.Generator().manual_seed(1)
    batches = [{"input_ids": torch.randint(0, 64, (8, 12), generator=random)} for _ in range(2)]
    report = pr.sketch_(model, ratio=0.7, calibration=batches, probes=2)
    whole = sum(parameter.numel() for parameter in original.parameters())
    assert sum(layer.before.stored for layer in report.layers) > 0.95 * whole
    assert any("experts" in name for name in report.replaced)
    with torch.no_grad():
        y, expected = (torch.cat([net(**batch).logits for batch in batches]) for net in (model, original))
    assert report.output_error == pytest.approx(((y - expected).norm() / expected.norm()).item(), rel=1e-2)
    # by transformers' own files
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path).eval()
    assert isinstance(loaded.get_submodule(report.replaced[0]), SKLinear)
    assert torch.equal(loaded(**batches[0]).logits, model(**batches[0]).logits)


def test_experts_of_llama_4_are_stacked():
    modeling = pytest.importorskip("transformers.models.llama4.modeling_llama4")
    config = modeling.Llama4TextConfig(hidden_size=64, intermediate_size=96, num_local_experts=3)
    experts = modeling.Llama4TextExperts(config).requires_grad_(requires_grad=False)
    nn.init.normal_(experts.gate_up_proj, std=0.1)
    nn.init.normal_(experts.down_proj, std=0.1)
    stacked = opened_experts(experts)
    assert isinstance(stacked, StackedExperts)
    x = torch.randn(6, 64)
    assert torch.allclose(stacked(x), experts(x), atol=1e-5)


def dbrx():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.DbrxConfig(
        d_model=64, n_heads=4, n_layers=1, max_seq_len=64, vocab_size=64, use_cache=False,
        ffn_config={"ffn_hidden_size": 96, "moe_num_experts": 4, "moe_top_k": 2},
        attn_config={"kv_n_heads": 2, "clip_qkv": 8, "rope_theta": 1e4},
    )  # fmt: skip
    return transformers.DbrxForCausalLM(config).eval()


def test_experts_of_dbrx_lie_in_tensors_of_two_axes(tmp_path):
    original = dbrx()
    model = copy.deepcopy(original)
    batches = [{"input_ids": torch.randint(0, 64, (8, 12), generator=torch.Generator().manual_seed(1))}]
    report = pr.sketch_(model, ratio=0.7, calibration=batches, probes=2)
    experts = {f"transformer.blocks.0.ffn.experts.{name}.{i}" for name in ("gate", "up", "down") for i in range(4)}
    assert experts <= {layer.name for layer in report.layers}
    assert experts & set(report.replaced)
    assert sum(group.share for group in report.unreached) < 0.06
    with torch.no_grad():
        y, expected = (net(**batches[0]).logits for net in (model, original))
    assert report.output_error == pytest.approx(((y - expected).norm() / expected.norm()).item(), rel=1e-2)
    pr.save(model, tmp_path / "m.safetensors")
    other = dbrx()
    assert set(pr.restore_(other, tmp_path / "m.safetensors")) == set(report.replaced)
    assert torch.equal(other(**batches[0]).logits, model(**batches[0]).logits)


class Glu(nn.Module):
    """A module of weights as that of DBRX; another order of the products with ``swapped``."""

    def __init__(self):
        super().__init__()
        self.w1, self.v1, self.w2 = (nn.Parameter(torch.randn(EXPERTS * 32, WIDTH) / 8) for _ in range(3))
        self.activation_fn = nn.functional.silu


class GatedMixture(nn.Module):
    def __init__(self, *, swapped=False):
        super().__init__()
        self.mlp, self.num_experts, self.swapped = Glu(), EXPERTS, swapped

    def forward(self, hidden_states, top_k_index, top_k_weights):
        w1, v1, w2 = (weight.view(EXPERTS, 32, WIDTH) for weight in (self.mlp.w1, self.mlp.v1, self.mlp.w2))
        gate, up = (torch.einsum("nd,efd->nef", hidden_states, w) for w in ((v1, w1) if self.swapped else (w1, v1)))
        every = torch.einsum("nef,efd->ned", nn.functional.silu(gate) * up, w2)
        shares = torch.zeros(len(hidden_states), EXPERTS).scatter(1, top_k_index, top_k_weights)
        return torch.einsum("ned,ne->nd", every, shares).unsqueeze(1)


def test_experts_of_two_axes_are_opened_where_they_compute_the_same():
    torch.manual_seed(0)
    experts = GatedMixture()
    made = opened_experts(experts)
    assert isinstance(made, GatedExperts)
    assert [len(made.layers(name)) for name in ("gate", "up", "down", "gate_up")] == [EXPERTS, EXPERTS, EXPERTS, 0]
    assert made.gate[1].weight.data_ptr() == experts.mlp.w1[32:].data_ptr()
    assert opened_experts(GatedMixture(swapped=True)) is None
    other = GatedMixture()
    other.mlp.w2 = nn.Parameter(torch.randn(EXPERTS * 32, WIDTH + 1))
    assert opened_experts(other) is None
    shared = nn.ModuleList([GatedMixture(), GatedMixture()])
    shared[1].mlp.w1 = shared[0].mlp.w1
    assert opened(shared) == []
