"""docs/conversion.md: its code runs, its tables are those of the benchmark."""

import contextlib
import io
import json
import re
from pathlib import Path

import torch

ROOT = Path(__file__).parents[3]
TEXT = (ROOT / "docs" / "conversion.md").read_text(encoding="utf-8")
RESULTS = json.loads((ROOT / "benchmarks" / "results" / "conversion.json").read_text(encoding="utf-8"))


def table(heading):
    lines = TEXT.split(f"\n| {heading} ", 1)[1].splitlines()[2:]
    rows = []
    for line in lines:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def test_the_code_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 10
    namespace = {}
    with contextlib.redirect_stdout(io.StringIO()), torch.random.fork_rng():
        for i, block in enumerate(blocks):
            exec(compile(block, f"conversion.md block {i}", "exec"), namespace)


def test_the_table_of_weights():
    expected = [
        [f"L={row['num_terms']}, k={row['low_rank']}", f"{row['public_way']:.2f}", f"{row['ours']:.3f}"]
        for row in RESULTS["weights"]
    ]
    assert table("784 to 512") == expected


def test_the_table_of_digits():
    ways = ("original", "public_way", "weight_svd", "ours", "ours_distilled")
    expected = [[f"{row['ratio']}", *(f"{row[way]:.1f}" for way in ways)] for row in RESULTS["digits"]]
    assert table("digits, ratio") == expected


def test_the_table_of_the_trained_transformer():
    ways = ("weight_svd", "whitened_uniform", "ours", "ours_distilled")
    expected = [
        [f"{row['ratio']}", *(f"{row[way]['relative_error']:.3f}" for way in ways)]
        for row in RESULTS["transformer"]["rows"]
    ]
    assert table("transformer, ratio") == expected


def test_the_table_of_the_sentence_encoder():
    ways = ("public_way", "weight_svd", "whitened_uniform", "ours", "ours_distilled")
    expected = [
        [f"{row['ratio']}", *(f"{row[way]:.3f}" if way in row else "" for way in ways)]
        for row in RESULTS["encoder"]["mean_cosine"]
    ]
    assert table("encoder, ratio") == expected
