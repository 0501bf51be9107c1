from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from panther.linalg.sign_bits import sign_magnitude
from panther.nn import ProgressiveSKLinear, SKLinear, grow


def make(**options) -> ProgressiveSKLinear:
    sizes = {"initial_terms": 1, "max_terms": 4, "initial_rank": 2, "max_rank": 6, **options}
    return ProgressiveSKLinear(128, 96, generator=torch.Generator().manual_seed(0), **sizes)


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(256, 128, generator=generator)
    weight = torch.randn(128, 20, generator=generator) @ torch.randn(20, 96, generator=generator) / 40
    return x, x @ weight


def train(layer: nn.Module, optimizer: torch.optim.Optimizer, data, steps: int = 150) -> float:
    x, y = data
    for _ in range(steps):
        optimizer.zero_grad()
        loss = (layer(x) - y).square().mean()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        return (layer(x) - y).square().mean().item()


@pytest.mark.parametrize("sketch", ["sign", "gaussian", "orthonormal"])
def test_growth_keeps_the_function(sketch):
    layer = make(sketch=sketch)
    x = torch.randn(16, 128)
    before = layer(x)
    seen = [(1, 2)]
    while layer.increase_complexity():
        seen.append((layer.current_layer.num_terms, layer.current_layer.low_rank))
        assert (layer(x) - before).abs().max() <= 1e-5 * before.abs().max()
    assert seen == [(1, 2), (2, 4), (4, 6)]
    if sketch == "sign":
        assert sign_magnitude(layer.current_layer.U1s) == sign_magnitude(layer.current_layer.U2s)
        assert sign_magnitude(layer.current_layer.U1s) == torch.tensor(6**-0.5).item()


@pytest.mark.parametrize("kind", ["Adam", "SGD"])
def test_training_after_growth_goes_below_where_it_stood(data, kind):
    layer = make()
    options = {"lr": 0.01} if kind == "Adam" else {"lr": 3.0, "momentum": 0.9}
    optimizer = getattr(torch.optim, kind)(layer.parameters(), **options)
    stood = train(layer, optimizer, data, steps=400)
    bias = layer.current_layer.bias
    history = copy.deepcopy(optimizer.state[bias])
    stalled = train(copy.deepcopy(layer), torch.optim.Adam(layer.parameters(), lr=0.0), data)
    assert layer.increase_complexity(optimizer)
    # the optimiser has the new parameters and no others
    assert {id(p) for p in optimizer.param_groups[0]["params"]} == {id(p) for p in layer.parameters()}
    assert set(optimizer.state) <= set(layer.parameters())
    assert layer.current_layer.bias is bias
    for key, value in history.items():
        assert torch.equal(torch.as_tensor(optimizer.state[bias][key]), torch.as_tensor(value)), key
    assert train(layer, optimizer, data, steps=0) == pytest.approx(stalled, rel=1e-4)
    assert train(layer, optimizer, data, steps=400) < 0.9 * stood


def test_the_new_parameters_take_the_place_of_the_old_in_their_groups():
    layer = make()
    old = layer.current_layer
    optimizer = torch.optim.SGD([{"params": [old.S2s], "lr": 1.0}, {"params": [old.bias, old.S1s], "lr": 2.0}])
    layer.increase_complexity(optimizer)
    new = layer.current_layer
    assert optimizer.param_groups[0]["params"][0] is new.S2s
    assert optimizer.param_groups[1]["params"][1] is new.S1s
    assert optimizer.param_groups[1]["lr"] == 2.0


def test_an_optimizer_of_other_parameters_is_refused_before_anything_grows():
    layer = make()
    old = layer.current_layer
    with pytest.raises(ValueError, match="does not have the S1s of this layer"):
        layer.increase_complexity(torch.optim.SGD([old.bias], lr=1.0))
    assert layer.current_layer is old


def test_a_grown_checkpoint_loads_into_a_fresh_layer():
    source = make()
    source.increase_complexity()
    fresh = nn.Sequential(make())
    fresh.load_state_dict({f"0.{key}": value for key, value in source.state_dict().items()})
    x = torch.randn(3, 128)
    assert torch.equal(fresh(x), source(x))
    small = make(max_terms=1, max_rank=2)
    with pytest.raises(RuntimeError, match=r"size mismatch for current_layer\.S1s"):
        small.load_state_dict(source.state_dict())


def test_frozen_dtype_and_mode_survive_growth():
    layer = make(dtype=torch.float64).eval()
    layer.current_layer.S1s.requires_grad_(requires_grad=False)
    layer.increase_complexity()
    assert layer.current_layer.S1s.dtype == torch.float64
    assert not layer.current_layer.S1s.requires_grad
    assert layer.current_layer.S2s.requires_grad
    assert not layer.current_layer.training


def test_growth_warns_where_it_passes_dense():
    layer = make(max_terms=16, max_rank=32)
    layer.increase_complexity()
    with pytest.warns(UserWarning, match=r"stores 14,336 weights.*nn.Linear stores 12,288"):
        layer.increase_complexity()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"initial_terms": 5}, r"max_terms \(4\) must be at least initial_terms \(5\)"),
        ({"initial_rank": 7}, r"max_rank \(6\) must be at least initial_rank \(7\)"),
        ({"initial_rank": 0}, r"low_rank \(0\) must be at least 1"),
    ],
)
def test_wrong_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_grow_does_not_shrink():
    with pytest.raises(ValueError, match=r"num_terms and low_rank \(1, 8\) must not be below the layer's \(2, 4\)"):
        grow(SKLinear(64, 64, 2, 4), 1, 8)
