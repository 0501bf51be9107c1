"""What SKConv2d and SKConv1d compute, how they start, and what they refuse, against loops in numpy and torch's own."""

from __future__ import annotations

import copy
import math
import pickle
import warnings

import numpy as np
import pytest
import torch
from helpers.sketched_convolutions import error, image, make, oracle, written_out
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.utils.flop_counter import FlopCounterMode

import panther as pr
from panther.linalg.sign_bits import sign_magnitude
from panther.nn import SKConv1d, SKConv2d

# of torch, where the oracle pads by an odd width
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")

TERMS = ("both", "output", "input")
ROUNDING = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 6e-2}
OPTIONS = [
    {},
    {"stride": 2, "padding": 1},
    {"stride": (2, 1), "padding": (0, 2), "dilation": (1, 2)},
    {"padding": "same"},
    {"padding": "same", "dilation": 2, "kernel_size": (4, 3)},
    {"padding": "valid", "kernel_size": (1, 5)},
    {"padding": 1, "padding_mode": "reflect"},
    {"padding": (2, 1), "padding_mode": "circular", "stride": 2},
    {"padding": "same", "padding_mode": "replicate", "kernel_size": (2, 3)},
    {"groups": 2, "padding": 1},
    {"groups": 4, "bias": False, "kernel_size": 1, "stride": 2},
]


@pytest.mark.parametrize("terms", TERMS)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_computes_the_formula(options, terms):
    layer = make(**options, terms=terms, dtype=torch.float64)
    x = image(3, 8, 11, 9)
    assert error(layer(x), oracle(layer, x)) < 1e-12
    assert error(layer(x[0]), oracle(layer, x[0])) < 1e-12
    np.testing.assert_allclose(layer.dense_weight().detach().numpy(), written_out(layer), atol=1e-12)
    torch.testing.assert_close(layer.to_conv()(x), layer(x))


@pytest.mark.parametrize("terms", TERMS)
@pytest.mark.parametrize("options", [{}, {"padding": "same", "kernel_size": 4}, {"stride": 2, "groups": 2}], ids=str)
def test_one_axis(options, terms):
    layer = make(SKConv1d, **options, terms=terms, dtype=torch.float64)
    x = image(3, 8, 20)
    assert error(layer(x), oracle(layer, x)) < 1e-12


@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
def test_types(dtype):
    layer = make(padding=1, dtype=dtype)
    x = image(2, 8, 6, 6, dtype=dtype)
    y = layer(x)
    assert y.dtype == dtype
    assert error(y, oracle(layer, x)) < ROUNDING[dtype]


@pytest.mark.parametrize("terms", TERMS)
def test_gradients(terms):
    layer = make(padding="same", terms=terms, dtype=torch.float64, kernel_size=(3, 2))
    assert torch.autograd.gradcheck(layer, (image(2, 8, 4, 5).requires_grad_(),), fast_mode=True)
    learned = {name: p for name, p in layer.named_parameters() if name != "bias"}
    for name, parameter in learned.items():
        assert torch.autograd.gradcheck(
            lambda p, name=name: functional_call(layer, {name: p}, (image(2, 8, 4, 5),)), (parameter,), fast_mode=True
        )


@pytest.mark.parametrize("terms", TERMS)
@pytest.mark.parametrize("sketch", ["sign", "gaussian", "orthonormal"])
def test_starts_like_the_dense_convolution(sketch, terms):
    layer = make(SKConv2d, 48, 64, 3, 2, 8, sketch=sketch, terms=terms)
    dense = nn.Conv2d(48, 64, 3)
    x = image(8, 48, 12, 12, dtype=torch.float32)
    y, twin = layer(x), dense(x)
    assert abs(y.mean().item()) < 0.1
    assert 0.85 < (y.std() / twin.std()).item() < 1.18
    assert layer.bias.abs().max() <= 1 / math.sqrt(48 * 9)


def test_one_seed_one_layer_and_signs_are_exact():
    first, second = make(), make()
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name])
    assert sign_magnitude(first.U1s) == sign_magnitude(first.U2s) == torch.tensor(1 / math.sqrt(2)).item()
    U1s = first.U1s.clone()
    first.reset_parameters()
    assert torch.equal(first.U1s, U1s)


def test_meta_then_empty_then_reset():
    layer = make(device="meta").to_empty(device="cpu")
    layer.reset_parameters(torch.Generator().manual_seed(0))
    assert sign_magnitude(layer.U1s) is not None
    x = image(2, 8, 5, 5, dtype=torch.float32)
    assert error(layer(x), oracle(layer, x)) < 1e-5
    assert make(device="meta")(torch.zeros(2, 8, 5, 5, device="meta")).shape == (2, 12, 3, 3)


def truncated(M: np.ndarray, rank: int) -> float:
    s = np.linalg.svd(M, compute_uv=False)
    return float(np.sqrt((s[rank:] ** 2).sum() / (s**2).sum()))


@pytest.mark.parametrize("rank", [16, 96])
def test_from_conv_is_the_truncated_svd_of_the_unfolded_weight(rank):
    torch.manual_seed(0)
    conv = nn.Conv2d(64, 128, 3, padding=1)
    W = conv.weight.detach().double().numpy()
    layer = SKConv2d.from_conv(conv, 1, rank // 2)
    lost = np.linalg.norm(layer.dense_weight().detach().double().numpy() - W) / np.linalg.norm(W)
    assert lost == pytest.approx(truncated(W.reshape(128, -1), rank), rel=1e-4)
    assert lost == pytest.approx({16: 0.88, 96: 0.34}[rank], abs=0.005)


def test_from_conv_by_the_input_channels():
    torch.manual_seed(0)
    conv = nn.Conv1d(64, 32, 5)
    W = conv.weight.detach().double().numpy()
    layer = SKConv1d.from_conv(conv, 2, 2, terms="input")
    lost = np.linalg.norm(layer.dense_weight().detach().double().numpy() - W) / np.linalg.norm(W)
    assert lost == pytest.approx(truncated(W.transpose(1, 0, 2).reshape(64, -1), 8), rel=1e-4)


def test_from_conv_with_both_kinds_leaves_less_than_either_subspace_alone():
    torch.manual_seed(0)
    conv = nn.Conv2d(16, 24, 3)
    W = conv.weight.detach().double()
    layer = SKConv2d.from_conv(conv, 1, 4, terms="both")
    lost = ((layer.dense_weight() - W).norm() / W.norm()).item()
    P = torch.linalg.svd(W.flatten(1), full_matrices=False).U[:, :4]
    Q = torch.linalg.svd(W.transpose(0, 1).flatten(1), full_matrices=False).U[:, :4]
    apart = W - torch.einsum("op,qp,qcxy->ocxy", P, P, W)
    apart = apart - torch.einsum("cp,dp,odxy->ocxy", Q, Q, apart)
    assert lost <= (apart.norm() / W.norm()).item() * (1 + 1e-6)
    # no other S is closer: the rest is orthogonal to what the fixed terms reach
    left = (W - layer.dense_weight()).detach()
    assert torch.einsum("ocxy,ro->rcxy", left, layer.U1s.flatten(0, 1).double()).abs().max() < 1e-6
    assert torch.einsum("ocxy,cr->orxy", left, layer.U2s[0].double()).abs().max() < 1e-6


@pytest.mark.filterwarnings("ignore:.*the sketched layer is the larger one:UserWarning")
@pytest.mark.parametrize("terms", TERMS)
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_from_conv_of_full_rank_is_the_convolution(groups, terms):
    conv = nn.Conv2d(8, 12, 3, stride=2, padding=1, groups=groups, padding_mode="reflect").double().eval()
    conv.weight.requires_grad = False
    layer = SKConv2d.from_conv(conv, 1, 12, terms=terms)
    x = image(2, 8, 9, 9)
    torch.testing.assert_close(layer(x), conv(x))
    assert not layer.training
    assert [p.requires_grad for p in layer.parameters()] == [False] * (1 + (terms == "both")) + [True]


def test_from_conv_refuses_what_it_cannot_take_apart():
    with pytest.raises(TypeError, match=r"conv \(Conv1d\) must be an nn.Conv2d"):
        SKConv2d.from_conv(nn.Conv1d(2, 2, 3), 1, 1)
    with pytest.raises(ValueError, match="on the device 'meta'"):
        SKConv2d.from_conv(nn.Conv2d(2, 2, 3, device="meta"), 1, 1)
    conv = nn.Conv2d(8, 8, 3)
    conv.weight.data[0, 0, 0, 0] = math.nan
    with pytest.raises(ValueError, match="not finite"):
        SKConv2d.from_conv(conv, 1, 1)
    with pytest.raises(ValueError, match=r"groups \(8\) equal to in_channels make a depthwise convolution"):
        SKConv2d.from_conv(nn.Conv2d(8, 8, 3, groups=8), 1, 1)


WRONG = [
    ({"in_channels": 0}, ValueError, r"in_channels \(0\) must be at least 1"),
    ({"low_rank": 2.0}, TypeError, r"low_rank \(2.0\) must be an integer, not float"),
    ({"kernel_size": (3, 3, 3)}, ValueError, r"kernel_size \(\(3, 3, 3\)\) must be one integer, or 2"),
    ({"kernel_size": "3"}, TypeError, r"kernel_size \('3'\) must be an integer or a tuple of 2, not str"),
    ({"stride": 0}, ValueError, r"stride \(0\) must be at least 1"),
    ({"padding": -1}, ValueError, r"padding \(-1\) must be at least 0"),
    ({"padding": "full"}, ValueError, r"padding \('full'\) must be 'same', 'valid', an integer"),
    ({"padding": "same", "stride": 2}, ValueError, r"padding='same' needs stride 1, not \(2, 2\)"),
    ({"padding_mode": "mirror"}, ValueError, r"padding_mode \('mirror'\) must be one of 'zeros', 'reflect'"),
    ({"groups": 3}, ValueError, r"in_channels \(8\) must be divisible by groups \(3\)"),
    ({"groups": 8, "out_channels": 16}, ValueError, "depthwise convolution.*use nn.Conv2d"),
    ({"terms": "all"}, ValueError, r"terms \('all'\) must be one of 'both', 'output', 'input'"),
    ({"sketch": "random"}, ValueError, r"sketch \('random'\) must be one of"),
    ({"bias": 1}, TypeError, r"bias \(1\) must be True or False"),
]


@pytest.mark.parametrize(("options", "kind", "message"), WRONG, ids=str)
def test_refuses_wrong_arguments(options, kind, message):
    with pytest.raises(kind, match=message):
        make(**options)


@pytest.mark.parametrize("shape", [(2, 7, 9, 9), (8, 9), (1, 2, 8, 9, 9), (2, 9, 9, 8)], ids=str)
def test_refuses_inputs_of_other_shapes(shape):
    with pytest.raises(
        ValueError, match=rf"x of shape \({', '.join(map(str, shape))}\) must be \(batch, in_channels, h"
    ):
        make()(torch.zeros(shape))


def test_warns_of_a_layer_larger_than_dense():
    with pytest.warns(UserWarning, match=r"SKConv2d\(8, 8.*stores 2,560 weights; nn.Conv2d stores 576"):
        SKConv2d(8, 8, 3, 2, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        SKConv2d(64, 64, 3, 1, 8)


def test_says_what_it_is():
    assert repr(make(padding="same", terms="input")) == (
        "SKConv2d(8, 12, kernel_size=(3, 3), num_terms=2, low_rank=2, stride=(1, 1), padding='same', terms='input', "
        "bias=True)"
    )
    assert "sketch='gaussian'" in repr(make(sketch="gaussian", dilation=2, groups=2))


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("terms", TERMS)
def test_counts_what_it_holds(terms, groups):
    layer = make(terms=terms, groups=groups)
    count = layer.parameter_count()
    assert count.learnable == sum(parameter.numel() for parameter in layer.parameters())
    assert count.fixed == sum(buffer.numel() for buffer in layer.buffers())
    assert count.dense == sum(parameter.numel() for parameter in layer.to_conv().parameters())


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("terms", TERMS)
def test_counts_the_multiply_adds_that_it_runs(terms, stride):
    layer = make(terms=terms, stride=stride, kernel_size=1, bias=False)
    twin = layer.to_conv()
    with FlopCounterMode(display=False) as ours:
        y = layer(torch.zeros(1, 8, 16, 16))
    with FlopCounterMode(display=False) as dense:
        twin(torch.zeros(1, 8, 16, 16))
    positions = y.shape[-1] ** 2
    assert [ours.get_total_flops(), dense.get_total_flops()] == [
        2 * positions * count for count in layer.multiply_adds_per_position()
    ]


def test_state_copy_and_pickle():
    layer, x = make(padding=1), image(2, 8, 5, 5, dtype=torch.float32)
    twin = make(padding=1)
    twin.reset_parameters(torch.Generator().manual_seed(9))
    twin.load_state_dict(layer.state_dict(), strict=True)
    for other in (twin, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(other(x), layer(x))
    assert list(layer.state_dict()) == ["S1s", "S2s", "bias", "U1s", "U2s"]
    assert list(make(terms="output", bias=False).state_dict()) == ["S1s", "U1s"]


def test_the_compact_checkpoint_packs_signs(tmp_path):
    layer = make(SKConv2d, 64, 128, 3, 2, 8)
    size = pr.save(layer, tmp_path / "layer.safetensors")
    count = layer.parameter_count()
    assert 0 < size - 4 * count.learnable - count.fixed // 8 < 1024
    twin = make(SKConv2d, 64, 128, 3, 2, 8)
    twin.reset_parameters(torch.Generator().manual_seed(9))
    pr.load(twin, tmp_path / "layer.safetensors")
    x = image(1, 64, 5, 5, dtype=torch.float32)
    assert torch.equal(twin(x), layer(x))


def test_a_checkpoint_of_the_public_package_loads():
    L, k, c_in, c_out = 3, 4, 8, 12
    random = torch.Generator().manual_seed(0)
    theirs = {
        "S1s": torch.randn(2 * L * k, c_in, 3, 3, generator=random),
        "U1s": torch.randn(2 * L, k, c_out, generator=random),
        "bias": torch.randn(c_out, generator=random),
    }
    layer = make(SKConv2d, c_in, c_out, 3, L, k, padding=1, terms="output")
    layer.load_state_dict(theirs, strict=True)
    x = image(2, c_in, 6, 6, dtype=torch.float32)
    # their formula: the mean over the 2L terms
    hidden = nn.functional.conv2d(x, theirs["S1s"], padding=1).unflatten(1, (2 * L, k))
    expected = torch.einsum("nlkhw,lko->nohw", hidden, theirs["U1s"]) / (2 * L) + theirs["bias"].view(1, -1, 1, 1)
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiles_without_a_graph_break(backend):
    torch.compiler.reset()
    model = nn.Sequential(make(padding="same"), nn.ReLU(), make(in_channels=12, terms="output", kernel_size=1))
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    x = image(2, 8, 6, 6, dtype=torch.float32).requires_grad_()
    torch.testing.assert_close(compiled(x), model(x))
    ours = torch.autograd.grad(compiled(x).square().sum(), [x, *model.parameters()])
    theirs = torch.autograd.grad(model(x).square().sum(), [x, *model.parameters()])
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    torch.compiler.reset()


def test_exports_and_traces():
    layer = make(padding=1, padding_mode="reflect").eval()
    x = image(4, 8, 6, 6, dtype=torch.float32)
    program = torch.export.export(layer, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.testing.assert_close(program.module()(x[:3]), layer(x[:3]))
    for traced in (make(padding=1), make(padding="same", kernel_size=2)):
        torch.testing.assert_close(torch.fx.symbolic_trace(nn.Sequential(traced))(x), traced(x))


def test_per_sample_gradients():
    layer, x = make(padding=1, dtype=torch.float64), image(3, 8, 5, 5)
    parameters = {name: parameter.detach() for name, parameter in layer.named_parameters()}
    per_sample = vmap(grad(lambda p, row: functional_call(layer, p, (row,)).square().sum()), in_dims=(None, 0))
    found = per_sample(parameters, x)
    for i, row in enumerate(x):
        expected = torch.autograd.grad(layer(row).square().sum(), [*layer.parameters()])
        for name, value in zip(parameters, expected, strict=True):
            torch.testing.assert_close(found[name][i], value)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_on_cpu(dtype):
    layer, x = make(padding=1), image(4, 8, 6, 6, dtype=torch.float32)
    reference = oracle(layer, x)
    with torch.autocast("cpu", dtype=dtype):
        y = layer(x)
    assert y.dtype == dtype
    assert error(y, reference) < 0.05
    y.float().sum().backward()
    assert layer.S1s.grad.dtype == layer.S2s.grad.dtype == torch.float32


def test_channels_last_and_moving():
    layer = make(padding=1)
    x = image(2, 8, 6, 6, dtype=torch.float32)
    torch.testing.assert_close(
        layer.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last)), layer(x)
    )
    assert layer.double()(x.double()).dtype == torch.float64


def test_param_groups_and_analysis():
    model = nn.Sequential(make(SKConv2d, 64, 64, 3, 1, 8), make(SKConv2d, 64, 64, 3, 1, 8, terms="output"))
    groups = pr.param_groups(model, sketch_lr=1e-3, lr=1e-4)
    assert [len(group["params"]) for group in groups] == [3, 2]
    analysis = pr.analyze(model)
    assert [entry.kernel_size for entry in analysis.layers] == [(3, 3)] * 2
    assert analysis.total.parameters == model[0].parameter_count() + model[1].parameter_count()
    assert analysis.total.bytes_in_memory == sum(tensor.nbytes for tensor in model.state_dict().values())
    assert analysis.layers[1].S2s_parameters == 0
    assert analysis.layers[1].costs.latency_us is None
    assert "64 → 64, 3x3" in str(analysis)
