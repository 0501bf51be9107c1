"""Gates: the effect of the components of a layer on the model's outputs, against the change when they are removed."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import panther as pr
from panther.convert import gates
from panther.convert.api import sketch_
from panther.convert.compact import CompactCandidate
from panther.convert.forward import evaluating
from panther.convert.gates import GatedCandidate, Gates, gated, measure
from panther.convert.groups import calibrate
from panther.convert.layers import find_units


class Masked(nn.Module):
    """One of two layers counts in each row: the one that the row's first entry chooses. Its rows are the small ones."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(96, 96, bias=False), nn.Linear(96, 96, bias=False)

    def forward(self, x):
        chosen = torch.where(x[..., :1] > 0, 1.0, 0.02)
        return self.first(x) * chosen + self.second(x) * 0.3


class Twice(nn.Module):
    def __init__(self, calls):
        super().__init__()
        self.calls, self.layer = calls, nn.Linear(96, 96, bias=False)

    def forward(self, x):
        return sum(self.layer(x) for _ in range(self.calls))


@pytest.fixture
def masked():
    torch.manual_seed(0)
    return Masked().eval()


@pytest.fixture
def masked_rows():
    x = torch.randn(256, 96, generator=torch.Generator().manual_seed(1))
    # rows that the first layer hardly counts in are large, in other directions
    x[:, 1:48] *= torch.where(x[:, :1] > 0, 1.0, 0.1)
    x[:, 48:] *= torch.where(x[:, :1] > 0, 0.1, 10.0)
    return x


def candidates_and_gates(model, batches, probes=8, room=1e9):
    units = find_units(model, None, ())
    generator = torch.Generator().manual_seed(0)
    with evaluating(model):
        found = calibrate(
            model, units, batches, None, probes=probes, generator=generator, memory=None, step=lambda *_: None
        ).candidates
        measured = measure(
            model,
            found,
            batches,
            None,
            probes=probes,
            generator=generator,
            room={torch.device("cpu"): room},
            on_batch=lambda *_: None,
        )
    return found, measured


def change(model, candidate, kept, batches):
    """Σ over the batches of ‖y - ŷ‖² / ‖y‖² times the examples, with some components of a layer alone."""
    layer = candidate.unit.places[0].module
    left, right = candidate.factors(candidate.ranks[-1])
    dense, total = layer.weight.detach().clone(), 0.0
    with torch.no_grad():
        for x in batches:
            y = model(x)
            layer.weight.copy_((left[:, kept] @ right[kept]).t())
            total += len(x) * ((model(x) - y).square().sum() / y.square().sum()).item()
            layer.weight.copy_(dense)
    return total


def test_the_errors_of_ranks_are_the_changes_of_the_outputs(masked, masked_rows):
    batches = list(masked_rows.split(64))
    found, measured = candidates_and_gates(masked, batches, probes=64)
    in_order, _ = gated(found, measured)
    candidate, by_gates = found[0], in_order[0]
    assert isinstance(candidate, CompactCandidate)
    assert isinstance(by_gates, GatedCandidate)
    rank = candidate.ranks[0]
    actual = change(masked, candidate, torch.arange(rank), batches)
    assert by_gates.tail()[rank].item() == pytest.approx(actual, rel=0.3)
    # the second moments of the rows and of the derivatives do not show that large rows hardly count
    assert candidate.tail()[rank].item() > 2 * actual


def test_each_gate_is_the_change_without_its_component(masked, masked_rows):
    batches = list(masked_rows.split(64))
    found, measured = candidates_and_gates(masked, batches, probes=64)
    count = found[0].ranks[-1]
    whole = change(masked, found[0], torch.arange(count), batches)
    for removed in (0, 3):
        kept = torch.tensor([i for i in range(count) if i != removed])
        without = change(masked, found[0], kept, batches)
        assert measured[0].single[removed].item() == pytest.approx(without - whole, rel=0.3)


def test_the_largest_gradients_come_first(masked, masked_rows):
    found, measured = candidates_and_gates(masked, [masked_rows])
    _, largest_first = gated(found, measured)
    candidate = largest_first[0]
    assert isinstance(candidate, GatedCandidate)
    single = measured[0].single[candidate.order]
    assert bool((single.diff() <= 0).all())
    rank = candidate.ranks[0]
    left, right = candidate.factors(rank)
    every_left, every_right = found[0].factors(found[0].ranks[-1])
    kept = candidate.order[:rank].sort().values
    assert torch.equal(left, every_left[:, kept])
    assert torch.equal(right, every_right[kept])


def test_errors_of_any_order_are_those_of_the_weight_and_the_data(masked, masked_rows):
    found, measured = candidates_and_gates(masked, [masked_rows])
    in_order, largest_first = gated(found, measured)
    rank = found[0].ranks[0]
    assert in_order[0].errors(rank) == pytest.approx(found[0].errors(rank), rel=1e-4)
    W = masked.first.weight.detach().double()
    left, right = largest_first[0].factors(rank)
    lost, rows = W - (left @ right).t(), masked_rows.double()
    in_weight, on_data = largest_first[0].errors(rank)
    assert in_weight == pytest.approx((lost.norm() / W.norm()).item(), rel=1e-4)
    assert on_data == pytest.approx(((rows @ lost.t()).norm() / (rows @ W.t()).norm()).item(), rel=1e-2)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((6, 4, 3), lambda c: c.view(6, 4, 2).sum(1)),
        ((4, 6, 3), lambda c: c.view(4, 6, 2).sum(0)),
        ((2, 6, 2, 3), lambda c: c.view(2, 6, 2, 2).sum((0, 2))),
        ((24, 3), lambda c: c.view(6, 4, 2).sum(1)),
        ((23, 3), lambda c: c[:23].sum(0, keepdim=True)),
    ],
)
def test_rows_are_added_up_by_example(shape, expected):
    products = torch.randn(24, 2)
    rows = 24 if shape != (23, 3) else 23
    found = gates._by_example(products[:rows], torch.Size(shape), 6)
    torch.testing.assert_close(found, expected(products))


def test_calls_of_a_layer_are_added_before_they_are_squared():
    found = []
    for calls in (1, 2):
        torch.manual_seed(0)
        model, rows = Twice(calls).eval(), torch.randn(64, 96)
        _, (each,) = candidates_and_gates(model, [rows])
        found.append(each)
    # v is relative to the outputs, which are twice as large; the sum of two squares would be half of the square
    assert found[1].cut[0].item() == pytest.approx(found[0].cut[0].item(), rel=0.2)
    assert found[1].single.sum().item() == pytest.approx(found[0].single.sum().item(), rel=0.2)


def test_groups_measure_the_same(masked, masked_rows):
    _, whole = candidates_and_gates(masked, [masked_rows])
    _, apart = candidates_and_gates(masked, [masked_rows], room=1)
    for one, other in zip(whole, apart, strict=True):
        torch.testing.assert_close(one.cut, other.cut)


@pytest.mark.parametrize("rows", [gates.LEAST_EXAMPLES - 1, gates.LEAST_EXAMPLES])
def test_few_examples_are_not_used(masked, masked_rows, rows):
    found, measured = candidates_and_gates(masked, [masked_rows[:rows]])
    ways = gated(found, measured)
    assert len(ways) == (2 if rows == gates.LEAST_EXAMPLES else 0)


def test_layers_without_gates_keep_their_errors(masked, masked_rows):
    found, measured = candidates_and_gates(masked, [masked_rows])
    in_order, largest_first = gated(found, measured[:1])
    assert isinstance(in_order[0], GatedCandidate)
    assert in_order[1] is found[1]
    assert largest_first[1] is found[1]


def test_sums_that_are_not_finite_are_left_out(masked, masked_rows, monkeypatch):
    monkeypatch.setattr(Gates, "usable", property(lambda each: each.candidate.unit.name == "second"))
    _, measured = candidates_and_gates(masked, [masked_rows])
    assert [each.candidate.unit.name for each in measured] == ["second"]


def test_a_conversion_by_gates_is_closer_to_the_original(masked, masked_rows, monkeypatch):
    errors = []
    for by_gates in (True, False):
        if not by_gates:
            monkeypatch.setattr("panther.convert.api._by_gates", lambda *_: [])
        torch.manual_seed(0)
        model = Masked().eval()
        report = sketch_(model, ratio=0.75, calibration=list(masked_rows.split(64)))
        errors.append(report.output_error)
        assert ("gates" in report.allocation) == by_gates
    assert errors[0] < 0.9 * errors[1]


def test_steps_are_reported(masked, masked_rows):
    steps = []
    pr.sketch_(masked, ratio=0.75, calibration=list(masked_rows.split(64)), on_step=lambda *step: steps.append(step))
    assert [step[1:] for step in steps if step[0] == "measuring"] == [(1, 4), (2, 4), (3, 4), (4, 4)]


class Uneven(nn.Module):
    """Layers that widen and narrow, with a residual, so that derivatives reach every input."""

    def __init__(self, bias):
        super().__init__()
        self.up, self.down = nn.Linear(32, 128, bias=bias), nn.Linear(128, 32, bias=bias)

    def forward(self, x):
        h = x + 0.5 * self.down(torch.tanh(self.up(x)) + 0.3)
        return h + self.down(torch.tanh(self.up(h)))


@pytest.mark.parametrize("bias", [False, True])
def test_products_of_the_narrow_side_are_those_of_the_factors(bias):
    torch.manual_seed(0)
    model, batches = Uneven(bias).eval(), list((torch.randn(64, 32) + 0.2).split(32))
    found, measured = candidates_and_gates(model, batches, probes=2)
    assert all(each.candidate.narrow is not None for each in measured)
    by_factors = [replace(candidate, narrow=None) for candidate in found if isinstance(candidate, CompactCandidate)]
    with evaluating(model):
        plain = measure(
            model,
            by_factors,
            batches,
            None,
            probes=2,
            generator=_after_calibration(batches),
            room={torch.device("cpu"): 1e9},
            on_batch=lambda *_: None,
        )
    for each, other in zip(measured, plain, strict=True):
        torch.testing.assert_close(each.single, other.single, rtol=1e-3, atol=1e-9)
        torch.testing.assert_close(each.cut, other.cut, rtol=1e-3, atol=1e-9)


def _after_calibration(batches, probes=2):
    """The generator of `candidates_and_gates` once the layers are calibrated."""
    generator = torch.Generator().manual_seed(0)
    for batch in batches:
        for _ in range(probes):
            torch.randn(batch.shape, generator=generator)
    return generator
