"""docs/compress.md: its code runs, and keeps what it says."""

import contextlib
import io
import re
from pathlib import Path

import pytest
import torch

from panther.compression import KINDS

TEXT = (Path(__file__).parents[3] / "docs" / "compress.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def namespace(tmp_path_factory):
    blocks = re.findall(r"^```python\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
    found: dict[str, object] = {}
    folder = tmp_path_factory.mktemp("compress")
    with contextlib.chdir(folder), contextlib.redirect_stdout(io.StringIO()), torch.random.fork_rng():
        for number, block in enumerate(blocks):
            exec(compile(block, f"compress.md block {number}", "exec"), found)
    return {**found, "folder": folder}


def test_the_budget_of_error_is_kept(namespace):
    report = namespace["compressed"].report
    assert report.output_error <= 0.05
    assert report.bytes_after < 0.3 * report.bytes_before
    assert namespace["exported"].file_bytes < 1.2 * report.bytes_after + 5000
    assert (namespace["folder"] / "curve.svg").read_text().startswith("<svg")


def test_the_metric_is_kept(namespace):
    small, accuracy = namespace["small"], namespace["accuracy"]
    assert float(accuracy(small.model)) >= namespace["least"]
    assert small.report.bytes_after < 0.25 * small.report.bytes_before
    assert namespace["least"] > 0.85


def test_the_table_of_kinds_is_complete():
    rows = re.findall(r"^\| `(\w+)` \| .* \|", TEXT, re.MULTILINE)
    assert set(KINDS) | {"float"} <= set(rows)
