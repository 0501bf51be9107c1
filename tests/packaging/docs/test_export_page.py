"""docs/export.md is executed: every Python block in one namespace, every panther command as it stands."""

import re
import shlex
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from panther.cli.commands import app
from panther.nn import SKLinear

DOCS = Path(__file__).parents[3] / "docs" / "export.md"
BLOCK = re.compile(r"^```(python|bash)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FACTORY = """
from torch import nn
from panther.nn import SKLinear

def build():
    return nn.Sequential(SKLinear(784, 512, 2, 64), nn.ReLU(), SKLinear(512, 10, 1, 4))
"""


def test_every_block_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mynet.py").write_text(FACTORY)
    layers = (SKLinear(784, 512, 2, 64), torch.nn.ReLU(), SKLinear(512, 10, 1, 4))
    torch.save(torch.nn.Sequential(*layers).state_dict(), tmp_path / "weights.pt")
    namespace = {"__name__": "docs"}
    blocks = BLOCK.findall(DOCS.read_text())
    assert len(blocks) >= 5
    for language, code in blocks:
        if language == "python":
            exec(compile(code, str(DOCS), "exec"), namespace)
            continue
        for line in code.splitlines():
            program, *arguments = shlex.split(line)
            assert program == "panther"
            result = CliRunner().invoke(app, arguments)
            assert result.exit_code == 0, result.output


@pytest.mark.parametrize(
    "option",
    ["u_storage", "external_data_bytes", "conditional", "max_weight_bytes", "tolerance", "batch_sizes", "num_threads"],
)
def test_options_are_told_of(option):
    assert f"`{option}" in DOCS.read_text()
