"""docs/scaling.md against the results that it shows."""

import importlib.util
import json
import sys


def test_the_table_is_that_of_the_results(root, monkeypatch):
    monkeypatch.syspath_prepend(str(root / "benchmarks"))
    spec = importlib.util.spec_from_file_location("bench_scaling", root / "benchmarks/bench_scaling.py")
    bench = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "bench_scaling", bench)
    spec.loader.exec_module(bench)
    text = (root / "docs/scaling.md").read_text()
    result = json.loads((root / "benchmarks/results/scaling.json").read_text())
    assert bench.put_table(text, result) == text
    assert f"{result['replicas']['3']['digits']['times_one']:.2f}x" in text
