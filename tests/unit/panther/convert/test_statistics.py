import pytest
import torch
from torch import nn

from panther.convert.calibration import collect, gather
from panther.convert.forward import evaluating
from panther.convert.layers import find_units
from panther.convert.statistics import InputPool


class Reader(nn.Module):
    """Two layers that read one tensor; where `part` is set, the second reads another one. A third is wide."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(12, 12), nn.Linear(12, 9), nn.Linear(12, 3)
        self.part = False

    def forward(self, x):
        y = x + 1 if self.part else x
        return torch.cat([self.a(x), self.b(y), self.c(x)], -1)


def seen(model, runs, probes=0):
    units = find_units(model, None, ())
    pool = InputPool()
    found = pool.statistics(units)
    with evaluating(model):
        for part, batch in runs:
            model.part = part
            gather(
                model,
                list(zip(units, found, strict=True)),
                [batch],
                None,
                probes=probes,
                generator=torch.Generator().manual_seed(0),
                on_batch=pool.flush,
            )
    pool.finish()
    return dict(zip((unit.name for unit in units), found, strict=True))


def second(*batches):
    return sum(batch.double().t() @ batch.double() for batch in batches)


def test_layers_that_read_one_tensor_share_its_sums():
    x, y = torch.randn(2, 20, 12)
    found = seen(Reader(), [(False, x), (False, y)])
    assert found["a"].inputs is found["b"].inputs is found["c"].inputs
    torch.testing.assert_close(found["a"].inputs.second, second(x, y))
    assert found["b"].rows == 40


def test_layers_part_where_they_read_different_tensors():
    x, y = torch.randn(2, 20, 12)
    found = seen(Reader(), [(False, x), (True, y)])
    assert found["a"].inputs is not found["b"].inputs
    torch.testing.assert_close(found["a"].inputs.second, second(x, y))
    torch.testing.assert_close(found["b"].inputs.second, second(x, y + 1))


def test_layers_part_where_different_rows_move_the_outputs():
    class Rows(Reader):
        def forward(self, x):
            return self.a(x)[:5].sum() + self.b(x)[:7] + self.c(x)[:7].sum(-1, keepdim=True)

    x = torch.randn(20, 12)
    found = seen(Rows(), [(False, x)], probes=2)
    assert (found["a"].rows, found["b"].rows, found["c"].rows) == (5, 7, 7)
    torch.testing.assert_close(found["a"].inputs.second, second(x[:5]))
    torch.testing.assert_close(found["b"].inputs.second, second(x[:7]))
    assert found["b"].inputs is found["c"].inputs


def test_a_wide_layer_has_the_second_moment_of_its_products_only():
    model = nn.Sequential(nn.Linear(12, 3))
    x = torch.randn(20, 12)
    found = seen(model, [(False, x)])["0"]
    assert found.inputs.second is None
    expected = second(x.double() @ model[0].weight.detach().double().t())
    torch.testing.assert_close(found.response, expected, rtol=1e-5, atol=1e-5)  # the products are float32
    torch.testing.assert_close(found.inputs.squares, x.double().square().sum())


def test_a_tall_layer_has_the_sensitivity_of_its_inputs():
    model = nn.Sequential(nn.Linear(4, 12), nn.Linear(12, 5))
    found = seen(model, [(False, torch.randn(20, 4))], probes=3)["0"]
    assert found.sensitivity.shape == (4, 4)
    assert found.outputs_squares > 0


@pytest.mark.parametrize("lone", [True, False])
def test_derivatives_at_the_inputs_of_a_tall_layer_are_its_own(lone):
    """Beside a residual connection, in two calls of one module, and where nothing before it is watched."""

    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.up = nn.Linear(4, 4), nn.Linear(4, 12)
            self.down = nn.Linear(12, 4)

        def forward(self, x):
            x = x if lone else self.first(x)
            for _ in range(2):
                x = x + self.down(torch.tanh(self.up(x)))
            return x

    torch.manual_seed(0)
    model = Residual()
    x = torch.randn(20, 4)
    found = seen(model, [(False, x)], probes=3)["up"]
    units = [unit for unit in find_units(model, None, ()) if unit.name != "first" or not lone]
    with evaluating(model):
        moments = collect(model, units, [x], None, probes=3, generator=torch.Generator().manual_seed(0))
    full = next(each for unit, each in zip(units, moments, strict=True) if unit.name == "up").sensitivity
    W = model.up.weight.detach().double()
    # products in the backward passes may be rounded to bfloat16, in both alike
    torch.testing.assert_close(found.sensitivity, W.t() @ full @ W, rtol=1e-2, atol=1e-2 * full.abs().max().item())
    torch.testing.assert_close(found.outputs_squares, full.diagonal().sum(), rtol=1e-5, atol=0)
