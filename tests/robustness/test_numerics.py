"""Layers, conversion and export over random sizes, types, ranks and scales, held to numpy in float64.

Bounds are those of rounding: so many units in the last place of the sum of absolute values (Higham, "Accuracy and
Stability of Numerical Algorithms", 2002, section 3.1), not of the result, in which terms may cancel.
"""

import math
import warnings

import numpy as np
import onnxruntime as ort
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

import panther
from panther.export import ExportError, export_onnx
from panther.linalg.sign_bits import pack_signs, sign_magnitude, unpack_signs
from panther.nn import SKLinear

EPS = {torch.float64: 2.0**-52, torch.float32: 2.0**-23, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}
quick = settings(max_examples=150, deadline=None, derandomize=True, database=None)
sizes = st.tuples(st.integers(1, 48), st.integers(1, 48), st.integers(1, 3), st.integers(1, 12))
"""d_in, d_out, L, k: 2Lk may well be over the smaller side."""
seeds = st.integers(0, 2**31)


@pytest.fixture(autouse=True)
def _quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of layers that store more than a dense one: here that is wanted
        yield


def random(shape, seed, scale=1.0, dtype=torch.float64):
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale).to(dtype)


def as64(tensor):
    return tensor.detach().double().numpy()


def terms(layer):
    return [as64(getattr(layer, name)) for name in ("S1s", "U1s", "U2s", "S2s")]


def formula(layer, x, absolute=False):
    """Σ x (S1 U1 + U2 S2) / 2L + b, or the same with every number's absolute value."""
    take = np.abs if absolute else np.asarray
    x, (S1s, U1s, U2s, S2s) = take(as64(x)), map(take, terms(layer))
    total = sum(x @ S1s[i] @ U1s[i] + x @ U2s[i] @ S2s[i] for i in range(layer.num_terms)) / (2 * layer.num_terms)
    return total if layer.bias is None else total + take(as64(layer.bias))


def rounding(layer, x, dtype):
    """How far a computation in this type may be off; the extra term is of numbers below the normal ones."""
    d_in, d_out, L, k = layer.in_features, layer.out_features, layer.num_terms, layer.low_rank
    steps = d_in + d_out + 2 * L * k + 16
    return steps * EPS[dtype] * formula(layer, x, absolute=True) + steps * float(torch.finfo(dtype).tiny)


@quick
@given(
    size=sizes,
    dtype=st.sampled_from(list(EPS)),
    bias=st.booleans(),
    lead=st.sampled_from([(), (1,), (3,), (0,), (2, 2)]),
    seed=seeds,
    scale=st.sampled_from([0.0, 1e-3, 1.0, 30.0]),
)
@example(size=(1, 1, 1, 1), dtype=torch.float32, bias=True, lead=(1,), seed=0, scale=1.0)
@example(size=(48, 1, 3, 12), dtype=torch.bfloat16, bias=False, lead=(3,), seed=1, scale=1.0)
def test_the_layer_is_its_formula(size, dtype, bias, lead, seed, scale):
    layer = SKLinear(*size, bias=bias, dtype=dtype, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        layer.S1s.mul_(scale)
        layer.S2s.mul_(scale)
    x = random((*lead, size[0]), seed + 1, dtype=dtype)
    expected, allowed = formula(layer, x), rounding(layer, x, dtype)
    for requires_grad in (True, False):
        y = layer.requires_grad_(requires_grad)(x)
        assert (y.dtype, y.shape) == (dtype, (*lead, size[1]))
        assert (np.abs(as64(y) - expected) <= allowed).all()


@quick
@given(sizes, seeds, st.sampled_from([1e-18, 1e-9, 1.0, 1e9, 1e15]))
def test_huge_and_tiny_weights_keep_their_digits(size, seed, scale):
    layer = SKLinear(*size, bias=False, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        layer.S1s.mul_(scale)
        layer.S2s.mul_(scale)
    x = random((4, size[0]), seed, dtype=torch.float32)
    assert (np.abs(as64(layer(x)) - formula(layer, x)) <= rounding(layer, x, torch.float32)).all()


def optimum(W, rank):
    """The closest matrix of a rank, and how far it is."""
    U, S, Vh = np.linalg.svd(W, full_matrices=False)
    return (U[:, :rank] * S[:rank]) @ Vh[:rank], math.sqrt(float(np.square(S[rank:]).sum()))


@quick
@given(sizes, seeds, st.sampled_from([0.0, 1e-30, 1e-6, 1.0, 1e6, 1e30]), st.integers(0, 3))
@example((48, 48, 1, 1), 0, 0.0, 0)
@example((3, 48, 3, 12), 0, 1e30, 0)
def test_conversion_of_a_layer_is_the_best_of_its_rank(size, seed, scale, kind):
    d_in, d_out, L, k = size
    W = as64(random((d_out, d_in), seed))
    if kind == 1:  # of rank one
        W = np.outer(W[:, 0], W[0])
    elif kind == 2:  # every singular value the same, as far as there are
        W = np.eye(d_out, d_in)
    elif kind == 3:  # singular values over ten orders of magnitude
        W = W * np.logspace(0, -10, d_in)
    linear = nn.Linear(d_in, d_out)
    with torch.no_grad():
        linear.weight.copy_(torch.from_numpy(W * scale))
    W = as64(linear.weight)
    layer = SKLinear.from_linear(linear, L, k)
    assert all(np.isfinite(term).all() for term in terms(layer))
    _, least = optimum(W, 2 * L * k)
    found = np.linalg.norm(as64(layer.dense_weight()) - W)
    # each of the four matrices is rounded to float32 once
    assert found <= least * (1 + 1e-6) + 16 * EPS[torch.float32] * np.linalg.norm(W)
    x = random((3, d_in), seed + 1, dtype=torch.float32)
    assert (np.abs(as64(layer(x)) - formula(layer, x)) <= rounding(layer, x, torch.float32)).all()


@settings(quick, max_examples=40)
@given(st.integers(8, 40), st.integers(8, 40), seeds, st.sampled_from([1e-12, 1.0, 1e12]), st.floats(0.05, 0.8))
def test_conversion_of_a_model_keeps_the_error_that_was_asked_for(d_in, d_out, seed, scale, max_error):
    W = as64(random((d_out, d_in), seed)) * np.logspace(0, -4, d_in) * scale
    model = nn.Sequential(nn.Linear(d_in, d_out), nn.Tanh())
    with torch.no_grad():
        model[0].weight.copy_(torch.from_numpy(W))
    W = as64(model[0].weight)
    report = panther.sketch_(model, max_error=max_error)
    layer = model[0]
    assert bool(report.replaced) == isinstance(layer, SKLinear)
    if isinstance(layer, SKLinear):
        assert np.linalg.norm(as64(layer.dense_weight()) - W) <= (max_error + 1e-5) * np.linalg.norm(W)
    else:
        np.testing.assert_array_equal(as64(layer.weight), W)


@quick
@given(st.lists(st.integers(1, 9), min_size=1, max_size=3), seeds, st.sampled_from(list(EPS)),
       st.sampled_from([1e-40, 2.0**-14, 0.1, 1.0, 3e4]))  # fmt: skip
def test_signs_are_packed_and_unpacked_bit_for_bit(shape, seed, dtype, magnitude):
    value = torch.tensor(magnitude, dtype=dtype)
    if value == 0:
        return
    signs = torch.where(random(shape, seed) > 0, value, -value)
    assert sign_magnitude(signs) == float(value)
    assert torch.equal(unpack_signs(pack_signs(signs), shape, float(value), dtype), signs)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_weights_that_are_not_finite_are_refused(bad, tmp_path):
    def spoilt(module, name):
        with torch.no_grad():
            getattr(module, name).view(-1)[3] = bad
        return module

    with pytest.raises(ValueError, match="not finite"):
        SKLinear.from_linear(spoilt(nn.Linear(16, 12), "weight"), 1, 2)
    model = nn.Sequential(spoilt(nn.Linear(16, 12), "weight"))
    report = panther.sketch_(model, max_error=0.5)
    assert not report.replaced
    assert "not finite" in str(report)
    for layer, name in ((nn.Linear(16, 12), "weight"), (nn.Linear(16, 12), "bias"), (SKLinear(16, 12, 1, 2), "S1s")):
        model = nn.Sequential(spoilt(layer, name))
        with pytest.raises(ExportError, match=rf"'0.{name}' holds values that are not finite as float32 \(1 of \d+\)"):
            export_onnx(model, torch.zeros(1, 16), tmp_path / "m.onnx", name="m")
        assert not list(tmp_path.iterdir())


def test_weights_beyond_the_type_of_the_file_are_refused(tmp_path):
    linear = nn.Linear(4, 4, dtype=torch.float64)
    with torch.no_grad():
        linear.weight[0, 0] = 1e39
    with pytest.raises(ExportError, match=r"'weight' holds values that are not finite as float32 \(1 of 16\)"):
        export_onnx(linear, torch.zeros(1, 4, dtype=torch.float64), tmp_path / "m.onnx", name="m")


def test_a_mask_of_infinities_is_exported(tmp_path):
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = SKLinear(8, 4, 1, 1)
            self.register_buffer("mask", torch.tensor([0.0, -math.inf, 0.0, -math.inf]))

        def forward(self, x):
            return torch.softmax(self.layer(x) + self.mask, dim=-1)

    model = Masked()
    export_onnx(model, torch.randn(3, 8), tmp_path / "m.onnx", name="m", plan="two_products")
    session = ort.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    x = torch.randn(5, 8)
    (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    np.testing.assert_allclose(y, model(x).detach().numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("size", "scale", "plan"),
    [
        ((1, 1, 1, 1), 0.0, "two_products"),
        ((5, 3, 3, 12), 1e-12, "dense"),  # 2Lk over both sides
        ((24, 9, 2, 1), 1e12, "two_products"),
    ],
)
def test_exported_files_compute_the_formula(size, scale, plan, tmp_path):
    model = nn.Sequential(SKLinear(*size, generator=torch.Generator().manual_seed(3)))
    with torch.no_grad():
        model[0].S1s.mul_(scale)
        model[0].S2s.mul_(scale)
    export_onnx(model, random((3, size[0]), 1, dtype=torch.float32), tmp_path / "m.onnx", name="m", plan=plan)
    session = ort.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    x = random((7, size[0]), 2, dtype=torch.float32)
    (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    assert (np.abs(y - formula(model[0], x)) <= 4 * rounding(model[0], x, torch.float32)).all()
