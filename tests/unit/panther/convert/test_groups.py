import copy
import tempfile
from functools import partial

import pytest
import torch
from torch import nn

import panther as pr
from panther.convert import ConversionError
from panther.convert.groups import calibrate
from panther.convert.layers import find_units
from panther.convert.survey import bytes_on, sizes_of


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
        self.o = nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 3 * width), nn.Linear(3 * width, width)

    def forward(self, x):
        x = x + self.o(torch.softmax(self.q(x) @ self.k(x).transpose(-1, -2) / 8, -1) @ self.v(x))
        return x + self.down(nn.functional.gelu(self.up(x)))


class Network(nn.Module):
    """A convolution with more patches than are sampled, two blocks, two outputs, of which the first layers move one."""

    def __init__(self, width=64):
        super().__init__()
        self.stem = nn.Conv1d(8, width, 3)
        self.blocks = nn.ModuleList(Block(width) for _ in range(2))
        self.head, self.side = nn.Linear(width, 40), nn.Linear(8, 20)

    def forward(self, x):
        side = self.side(x)
        x = self.stem(x.transpose(1, 2)).transpose(1, 2)
        for block in self.blocks:
            x = block(x)
        return self.head(x), side


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return Network().eval()


@pytest.fixture(scope="module")
def batches():
    generator = torch.Generator().manual_seed(1)
    # 90 positions for each of 50 rows, over 4,096 together
    return [torch.randn(rows, 92, 8, generator=generator) for rows in (50, 4)]


def converted(network, batches, **options):
    model = copy.deepcopy(network)
    steps = []
    report = pr.sketch_(
        model, ratio=0.7, calibration=batches, probes=2, on_step=lambda *step: steps.append(step), **options
    )
    return model, report, steps


def test_groups_give_the_model_of_one_pass(network, batches):
    whole, expected, _ = converted(network, batches, memory="10GB")
    model, report, steps = converted(network, batches, memory="1MB")
    assert [layer.rank for layer in report.layers] == [layer.rank for layer in expected.layers]
    assert len(report.replaced) >= 4
    for name, tensor in whole.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], tensor, rtol=1e-3, atol=1e-4)
    assert report.output_error == pytest.approx(expected.output_error, rel=1e-3)
    for ours, theirs in zip(report.layers, expected.layers, strict=True):
        assert ours.data_error == (None if theirs.data_error is None else pytest.approx(theirs.data_error, rel=1e-3))
    assert not any("passes" in note for note in expected.notes)
    (note,) = (note for note in report.notes if "passes" in note)
    passes = int(note.split()[2])
    assert passes > 2
    assert [step for step in steps if step[0] == "calibrating"][-1] == ("calibrating", 2 * passes, 2 * passes)
    assert [step[1] for step in steps if step[0] == "factorizing"] == list(range(1, len(report.layers) + 1))


def test_memory_too_small_for_any_layer_converts_one_at_a_time_and_says_so(network, batches):
    _, report, _ = converted(network, [batches[1]], memory=1)
    assert f"calibrated in {len(report.layers)} passes over the inputs, at most 1 of " in "".join(report.notes)
    assert "too little for the largest layer" in "".join(report.notes)
    assert "factors were kept off the device" in "".join(report.notes)


def test_factors_on_the_disk_give_the_same_layers(network, batches, monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    plain, _, _ = converted(network, [batches[1]], memory="10GB")
    spilled, report, _ = converted(network, [batches[1]], memory="1kB")
    assert any("MB of factors" in note for note in report.notes)
    torch.testing.assert_close(spilled.state_dict(), plain.state_dict(), rtol=1e-3, atol=1e-4)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_named_and_the_model_stays(network, batches, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    model = copy.deepcopy(network)
    with pytest.raises(ConversionError, match=r"can't be kept in .*No space left on device; set TMPDIR"):
        pr.sketch_(model, ratio=0.7, calibration=batches[1], probes=0, memory=1)
    assert all(type(module).__module__.startswith(("torch", __name__)) for module in model.modules())


@pytest.mark.parametrize(
    ("memory", "message"),
    [(0, "at least 1 byte"), ("8 apples", 'a text such as "8GB"'), (1.5, "bytes as an integer"), (True, "integer")],
)
def test_wrong_memory_is_refused(network, batches, memory, message):
    with pytest.raises(ValueError, match=message):
        pr.sketch_(network, ratio=0.7, calibration=batches, memory=memory)


def test_groups_are_planned_to_fit_in_memory(network, batches):
    units = find_units(network, None, ())
    limit = 2 * max(bytes_on(torch.device("cpu"), [unit], partial(sizes_of, probes=2)) for unit in units)
    found = calibrate(
        network,
        units,
        [batches[1]],
        None,
        probes=2,
        generator=torch.Generator().manual_seed(0),
        memory=limit,
        step=lambda *_: None,
    )
    (note,) = (note for note in found.notes if "passes" in note)
    assert float(note.split("statistics take ")[1].split()[0].replace(",", "")) * 1e6 <= limit
    assert {id(candidate.unit) for candidate in found.candidates} <= set(map(id, units))
    assert [unit.name for unit in units if unit.reason is None] == [c.unit.name for c in found.candidates]


def test_a_generator_ends_where_one_pass_leaves_it(network, batches):
    states = []
    for memory in ("10GB", 1):
        generator = torch.Generator().manual_seed(3)
        units = find_units(network, None, ())
        calibrate(
            network,
            units,
            batches,
            None,
            probes=2,
            generator=generator,
            memory=memory if memory == 1 else None,
            step=lambda *_: None,
        )
        states.append(generator.get_state())
    assert torch.equal(*states)
