"""docs/quantization.md: its code runs."""

import contextlib
import io
import re
from pathlib import Path

import torch

TEXT = (Path(__file__).parents[3] / "docs" / "quantization.md").read_text(encoding="utf-8")


def test_the_code_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first, second, third = re.findall(r"^```python\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
    namespace = {}
    with contextlib.redirect_stdout(io.StringIO()), torch.random.fork_rng():
        exec(compile(first, "quantization.md", "exec"), namespace)
        report, exported = namespace["report"], namespace["exported"]
        exec(compile(second, "quantization.md", "exec"), namespace)
        small = namespace["report"]
        exec(compile(third, "quantization.md", "exec"), namespace)
    assert namespace["result"].error < namespace["result"].error_before
    assert small.bytes_after < 0.21 * small.bytes_before
    assert small.output_error < 0.12
    assert report.output_error < 0.03
    assert report.bytes_after < 0.3 * report.bytes_before
    assert exported.card.storage.bytes_by_type["int8"] > 2 * 256 * 256
