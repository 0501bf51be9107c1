"""Moments in bounded memory: `compress` and `quantize_` with a budget and without one."""

import copy
import re
import subprocess
import sys

import pytest
import torch
from torch import nn

import panther as pr
from panther.convert.spill import Keeper
from panther.quantize import Blocks

# moments of 252 MB: 30 layers of 8 * 1024² bytes
PEAK = """
import re, sys
from pathlib import Path
import torch
from torch import nn
import panther as pr

class Branches(nn.Module):
    def __init__(self, width, count):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, 8) for _ in range(count))

    def forward(self, x):
        return sum(layer(x * (1 + i)) for i, layer in enumerate(self.layers))

def quantize(width, count, **options):
    torch.manual_seed(0)
    rows = torch.randn(64, width)
    pr.quantize_(Branches(width, count).eval(), calibration=rows, weights="int4", probes=1, **options)
    # not ru_maxrss, which counts the process that started this one
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024

torch.set_num_threads(1)
before = quantize(64, 2)
print(quantize(1024, 30, memory=eval(sys.argv[1])) - before)
"""


@pytest.fixture
def chain():
    """Layers with more moments together than one of them needs to be rounded."""
    torch.manual_seed(0)
    layers = [module for _ in range(32) for module in (nn.Linear(64, 64), nn.Tanh())]
    return nn.Sequential(*layers, nn.Linear(64, 10)).eval()


@pytest.fixture
def rows():
    return torch.randn(96, 64, generator=torch.Generator().manual_seed(1))


def least(convert):
    """The least memory, as the error for too little says."""
    with pytest.raises(ValueError, match=r"memory \(1 bytes\) is too small for .* take about [\d,]+ bytes") as error:
        convert(memory=1)
    return int(re.search(r"about ([\d,]+) bytes", str(error.value))[1].replace(",", ""))


@pytest.mark.parametrize("options", [{"weights": "int8", "alphas": (0.0, 0.5)}, {"weights": Blocks(4, 32)}])
def test_quantization_with_a_budget_gives_the_same_model(chain, rows, options):
    def quantized(**memory):
        model, steps = copy.deepcopy(chain), []
        report = pr.quantize_(
            model, calibration=rows.split(48), probes=1, on_step=lambda *step: steps.append(step), **options, **memory
        )
        return model, report, steps

    whole, expected, _ = quantized(memory="10GB")
    model, report, steps = quantized(memory=least(quantized))
    for name, tensor in whole.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor)
    assert report.output_error == expected.output_error
    assert not any("passes" in note for note in expected.notes)
    (note,) = (note for note in report.notes if "passes over the inputs" in note)
    passes = int(note.split()[2])
    assert passes > 1
    calibrating = [step for step in steps if step[0] == "calibrating"]
    assert calibrating[-1] == ("calibrating", 2 * passes + 2, 2 * passes + 2)


def test_compression_with_a_budget_gives_the_same_model(chain, rows):
    def compressed(**memory):
        kinds = ["int8", "low_rank", "int4"]
        return pr.compress(chain, calibration=rows.split(48), probes=1, max_bytes=160_000, kinds=kinds, **memory)

    whole, found = compressed(memory="10GB"), compressed(memory=least(compressed))
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(found.model.state_dict()[name], tensor)
    assert found.report.output_error == whole.report.output_error
    assert any("passes over the inputs" in note for note in found.report.notes)


@pytest.mark.parametrize(("memory", "message"), [(0, "at least 1 byte"), ("8 apples", 'a text such as "8GB"')])
@pytest.mark.parametrize("convert", [pr.quantize_, pr.compress])
def test_wrong_memory_is_refused(chain, rows, convert, memory, message):
    budget = {"max_bytes": 100_000} if convert is pr.compress else {}
    with pytest.raises(ValueError, match=message):
        convert(chain, calibration=rows, memory=memory, **budget)


@pytest.mark.parametrize(("memory", "kept"), [("'80MB'", True), ("None", False)])
def test_the_peak_is_kept(memory, kept):
    done = subprocess.run([sys.executable, "-c", PEAK, memory], capture_output=True, text=True, check=True)
    grown = int(done.stdout)
    # 100 MB, up to 170 MB on a busy machine; 320 MB without a limit
    assert (grown < 220e6) == kept, f"{grown / 1e6:.0f} MB"


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_keeper_loads_what_it_stored(dtype):
    keeper = Keeper(spilled=True)
    every = [
        torch.randn(5, 7, dtype=torch.float64).to(dtype),
        torch.randn(7, 5).to(dtype).t(),
        torch.randn(3).to(dtype),
    ]
    kept = [keeper.store(tensor) for tensor in every]
    for tensor, each in zip(every, kept, strict=True):
        found = each.load()
        assert torch.equal(found, tensor)
        assert found.stride() == tensor.stride()
