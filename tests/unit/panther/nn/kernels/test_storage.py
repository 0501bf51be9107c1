"""What a layer's state_dict hands out: the layer's memory, a storage for each term."""

from __future__ import annotations

import copy

import pytest
import safetensors.torch
import torch
from torch import nn

from panther.nn import SKLinear, functional

TERMS = ("S1s", "U1s", "U2s", "S2s")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_state_dict_terms_have_storages_of_their_own_and_the_layers_memory(dtype):
    layer = SKLinear(48, 32, 2, 3, dtype=dtype)
    state = layer.state_dict()
    assert len({state[name].untyped_storage().data_ptr() for name in TERMS}) == 4
    for name in TERMS:
        assert state[name].untyped_storage().nbytes() == state[name].numel() * dtype.itemsize
        assert state[name].data_ptr() == getattr(layer, name).data_ptr()
        assert torch.equal(state[name], getattr(layer, name))
    state["S1s"].fill_(7)
    assert bool((layer.S1s == 7).all()), "written through, as with any module"
    assert layer._packed.holds(layer.S1s, layer.U1s, layer.U2s, layer.S2s)


def test_state_dict_outlives_the_layer():
    layer = SKLinear(48, 32, 2, 3)
    state, expected = layer.state_dict(), copy.deepcopy(layer.state_dict())
    del layer
    torch.empty(10_000).fill_(3)
    assert all(torch.equal(state[name], expected[name]) for name in expected)


def test_parameters_themselves_with_keep_vars():
    layer = SKLinear(48, 32, 2, 3)
    assert layer.state_dict(keep_vars=True)["S1s"] is layer.S1s


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (SKLinear(24, 24, 1, 4) for _ in range(3))
        for name in TERMS:
            setattr(self.b, name, getattr(self.a, name))
        self.b._pack()

    def forward(self, x):
        return self.c(self.b(self.a(x)))


def test_safetensors_saves_and_loads_a_model(tmp_path):
    model, twin, x = Tied(), Tied(), torch.randn(5, 24)
    safetensors.torch.save_model(model, tmp_path / "model.safetensors")
    assert safetensors.torch.load_model(twin, tmp_path / "model.safetensors") == (set(), [])
    assert torch.equal(twin(x), model(x))
    floats = sum(t.numel() for t in (*model.parameters(), model.a.U1s, model.a.U2s, model.c.U1s, model.c.U2s))
    assert (tmp_path / "model.safetensors").stat().st_size < 4 * floats + 4096, "tied terms are written once"


def test_torch_save_writes_each_term_once(tmp_path):
    layer = SKLinear(240, 160, 1, 16)
    torch.save(layer.state_dict(), tmp_path / "state.pt")
    stored = sum(value.numel() * 4 for value in layer.state_dict().values())
    assert stored < (tmp_path / "state.pt").stat().st_size < 1.1 * stored
    twin = SKLinear(240, 160, 1, 16)
    twin.load_state_dict(torch.load(tmp_path / "state.pt"))
    x = torch.randn(3, 240)
    expected = functional.two_products(x, *layer.factors(), 1, layer.bias)
    torch.testing.assert_close(twin(x), expected)
