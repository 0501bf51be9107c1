"""Savings of each layer of the shipped model, counted from the file, against its dense twin.

python benchmarks/bench_savings.py            a second
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
sys.path.insert(0, str(Path(__file__).parent))

from serving.machine import ROOT, about

from panther.counting import count_parameters
from panther.export import inspect_file


def measure(path: Path) -> dict[str, object]:
    """The layers of a model file with their counts, and the file beside its dense twin."""
    inspection = inspect_file(path)
    card = inspection["card"]
    layers = []
    for layer in card["layers"]:
        sizes = [layer[key] for key in ("in_features", "out_features", "num_terms", "low_rank")]
        counted = count_parameters(*sizes, bias=layer["bias"])
        if asdict(counted) != layer["parameters"]:
            raise SystemExit(f"{path}: the card's counts of {layer['name']} are not those of the formulas")
        entries = (
            "name",
            "in_features",
            "out_features",
            "num_terms",
            "low_rank",
            "plan",
            "parameters",
            "multiply_adds_per_row",
        )
        layers.append({key: layer[key] for key in entries})
    return {
        "model": path.relative_to(ROOT).as_posix(),
        "layers": layers,
        "totals": card["totals"]["model"],
        "file_bytes": inspection["file_bytes"],
        "dense_twin_weight_bytes": card["dense_twin"]["weight_bytes"],
        "test_accuracy": card["training"]["metrics"]["test_accuracy"],
        "dense_twin_test_accuracy": card["training"]["dense_twin_metrics"]["test_accuracy"],
        "max_relative_error": card["check"]["max_relative_error"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "savings.json")
    arguments = parser.parse_args()
    report = {
        "benchmark": "savings",
        **about(("onnx", "onnxruntime")),
        "threads": 1,
        **measure(ROOT / "models/digits/1/model.onnx"),
    }
    arguments.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
