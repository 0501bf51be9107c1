import pytest
import torch
from torch import nn

from panther.export.verify import double
from panther.export.verify.double import doubled, doubled_by_layer, ways_to_double
from panther.nn import SKLinear


class Network(nn.Module):
    """A sketched layer, buffers, a layer that is called twice, and a parameter of the whole."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.rand(16))
        self.sketched, self.norm = SKLinear(16, 16, 1, 2), nn.BatchNorm1d(16)
        self.twice = nn.Linear(16, 16)

    def forward(self, x):
        return self.twice(self.norm(self.sketched(self.twice(x * self.scale))))


def exact(model, x):
    """By a whole copy in float64."""
    copied = Network().eval()
    copied.load_state_dict(model.state_dict())
    with torch.no_grad():
        return copied.double()(x.double())


@pytest.mark.parametrize("way", [doubled, doubled_by_layer])
def test_a_model_computes_in_float64_and_keeps_its_tensors(way):
    torch.manual_seed(0)
    model, x = Network().eval(), torch.randn(5, 16)
    held = {name: (tensor.data_ptr(), tensor.clone()) for name, tensor in model.state_dict(keep_vars=True).items()}
    with torch.no_grad():
        single, wanted = model(x), exact(model, x)
        with way(model):
            found = model(x.double())
        torch.testing.assert_close(found, wanted, rtol=1e-13, atol=1e-13)
        assert not torch.equal(found, single.double())
        assert torch.equal(model(x), single)
    for name, tensor in model.state_dict(keep_vars=True).items():
        assert torch.equal(tensor, held[name][1]), name
    assert model.scale.data_ptr() == held["scale"][0]
    assert not model.twice._forward_hooks
    assert not model.twice._forward_pre_hooks


def test_layer_by_layer_a_layer_is_wide_only_while_it_computes():
    model, seen = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), []
    model[1].register_forward_pre_hook(lambda *_: seen.append([layer.weight.dtype for layer in model]))
    with torch.no_grad(), doubled_by_layer(model):
        model(torch.zeros(1, 4, dtype=torch.float64))
    assert seen[0][0] == torch.float32


def test_a_layer_whose_weight_is_read_uncalled_needs_the_whole_in_float64(monkeypatch):
    monkeypatch.setattr(double, "_LARGE_BYTES", 0)
    attention = nn.MultiheadAttention(8, 2).eval()
    x = torch.randn(3, 1, 8, dtype=torch.float64)
    by_layer, whole = ways_to_double(attention)
    with pytest.raises(RuntimeError), by_layer(attention):
        attention(x, x, x)
    assert {parameter.dtype for parameter in attention.parameters()} == {torch.float32}
    with whole(attention):
        assert attention(x, x, x)[0].dtype == torch.float64


def test_small_models_are_doubled_whole():
    assert ways_to_double(Network()) == [doubled]
