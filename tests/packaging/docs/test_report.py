"""What the documents say is what the results say; the results say where they come from."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from reporting.results import FOLDER, head
from reporting.tables import BLOCKS

ROOT = Path(__file__).parents[3]
RESULTS = sorted(FOLDER.glob("*.json"))


def test_the_documents_are_up_to_date():
    """Tables, pictures and the code map; where this fails: make report."""
    checked = subprocess.run(
        [sys.executable, "benchmarks/report.py", "--check"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, f"run 'make report':\n{checked.stdout}{checked.stderr}"


def test_the_readme_has_the_figures_of_the_results():
    """By hand, for one figure of each result that the README takes from."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    savings = json.loads((FOLDER / "savings.json").read_text())
    assert f"{savings['file_bytes'] / 1e6:.2f} MB, {savings['dense_twin_weight_bytes'] / 1e6:.2f} MB" in readme
    assert savings["file_bytes"] == (ROOT / "models/digits/1/model.onnx").stat().st_size
    serving = json.loads((FOLDER / "serving.json").read_text())["median"]["ours"]["1 row JSON, 64 clients"]
    assert f"{serving['rate']:,.0f} responses/s" in readme


def test_a_figure_changed_by_hand_is_noticed():
    import report

    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert report.filled(text) == text
    tampered = text.replace(" responses/s", "1 responses/s")
    assert tampered != text
    assert report.filled(tampered) == text
    with pytest.raises(ValueError, match="there is no block 'unknown'; there are: proof"):
        report.filled("<!-- report: unknown -->\n<!-- end of report -->")


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_a_result_says_where_it_comes_from(path):
    said = head(json.loads(path.read_text(encoding="utf-8")))
    assert re.fullmatch(r"[0-9a-f]{7,40}", said["commit"])
    assert said["machine"].get("cpu") or said["machine"].get("gpu")
    assert said["versions"]


def test_every_block_is_used_and_every_benchmark_is_run():
    import run

    marked = set()
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        marked |= set(re.findall(r"<!-- report: (\w+) -->", page.read_text(encoding="utf-8")))
    assert marked == set(BLOCKS)
    scripts = {path.stem.removeprefix("bench_") for path in (ROOT / "benchmarks").glob("bench_*.py")}
    # they need a commit to compare with, data of other packages, or the files of another benchmark
    called_by_hand = {"regression", "pitch", "avx2"}
    assert scripts - called_by_hand == {benchmark.name for benchmark in run.BENCHMARKS}


def test_accuracy_is_summed_up_rightly():
    """The table's means from the rows themselves, and the sizes from the formulas."""
    result = json.loads((FOLDER / "accuracy.json").read_text())
    for entry in result["summary"]:
        names = ("data", "method", "setting", "bits")
        rows = [row for row in result["rows"] if all(row[name] == entry[name] for name in names)]
        assert {row["seed"] for row in rows} == {0, 1, 2}
        assert entry["accuracy_mean"] == pytest.approx(sum(row["accuracy"] for row in rows) / 3, abs=1e-4)
    named = [row for row in result["summary"] if (row["data"], row["setting"]) == ("digits", "L=1, k=8")]
    (row,) = [row for row in named if row["bits"] == 32]
    sketch = 8 * (784 + 512) + 8 * (512 + 256)
    assert row["fixed"] == sketch
    assert row["learnable"] == sketch + 512 + 256 + 256 * 10 + 10
    assert row["file_bytes"] == 4 * row["learnable"] + sketch // 8
