"""Latency of a layer exported for CUDA, beside dense and the term-by-term graph.

    python benchmarks/gpu/bench_export.py --commit "$(git rev-parse HEAD)" --output benchmarks/results/gpu_export.json

Needs a GPU, onnxruntime-gpu and torch. The cells are those of benchmarks/bench_export.py; all files answer the same
rows first, compared with float64, and are then timed in turn: bound device buffers, one CUDA graph a session, until the
result is there. TF32 is off.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import warnings
from pathlib import Path

os.environ["ORT_DISABLE_TELEMETRY"] = "1"
sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import onnx
import onnxruntime
import torch
from bench_export import CELLS, PARITY, TermByTerm
from provenance import about
from torch import nn

from panther.export import export_onnx
from panther.export.ort import Target, load
from panther.export.planning.measure import median_us, runner
from panther.nn import SKLinear

BATCH_SIZES = (1, 8, 64, 256)
CUDA = Target("cuda", 1)
SIDES = ("dense", "term_by_term", "ours")


def write_files(layer: SKLinear, folder: Path) -> tuple[dict[str, Path], dict]:
    """The files of a cell, and what the planner decided for ours."""
    x = torch.randn(8, layer.in_features, generator=torch.Generator().manual_seed(1))
    paths = {side: folder / f"{side}.onnx" for side in SIDES}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for side, module in (("dense", layer.to_linear()), ("term_by_term", TermByTerm(layer).eval())):
            export_plain(module, x, paths[side])
        report = export_onnx(layer, x, paths["ours"], name="layer", target="cuda", batch_sizes=BATCH_SIZES)
    return paths, json.loads(report.card.to_json())["planning"]["sites"][0]


def export_plain(module: nn.Module, x: torch.Tensor, path: Path) -> None:
    program = torch.onnx.export(
        module,
        (x,),
        input_names=["x"],
        output_names=["y"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        dynamo=True,
        verbose=False,
    )
    program.save(path, external_data=False)


def prove_parity(paths: dict[str, Path], layer: SKLinear, rng: np.random.Generator) -> dict[str, float]:
    """Largest error of each file against float64, over the largest output."""
    x = rng.standard_normal((16, layer.in_features)).astype(np.float32)
    A, B = (factor.detach().double().numpy() for factor in layer.factors())
    expected = x.astype(np.float64) @ A @ B / (2 * layer.num_terms) + layer.bias.detach().double().numpy()
    errors = {}
    for side, path in paths.items():
        session = load(path, CUDA)
        (y,) = session.run(None, {session.get_inputs()[0].name: x})
        errors[side] = float(np.abs(y - expected).max() / np.abs(expected).max())
        if not errors[side] <= PARITY:
            raise SystemExit(f"{side} is off by {errors[side]:.2g} of the largest output; nothing was timed")
    return errors


def bench_cell(cell: tuple[int, int, int, int]) -> dict:
    in_features, out_features, num_terms, low_rank = cell
    layer = SKLinear(*cell, generator=torch.Generator().manual_seed(0)).eval()
    rng = np.random.default_rng(0)
    batches = []
    with tempfile.TemporaryDirectory() as folder:
        paths, decided = write_files(layer, Path(folder))
        errors = prove_parity(paths, layer, rng)
        for batch in BATCH_SIZES:
            x = rng.standard_normal((batch, in_features)).astype(np.float32)
            runs = {}
            for side, path in paths.items():
                session = load(path, CUDA, cuda_graph=True)
                names = session.get_inputs()[0].name, session.get_outputs()[0].name
                runs[side] = runner(session, {names[0]: x}, CUDA, {names[1]: (batch, out_features)})
            median = median_us(runs, budget_s=1.5)
            batches.append(
                {
                    "batch": batch,
                    "median_us": {side: round(value, 2) for side, value in median.items()},
                    "ours_over_dense": round(median["ours"] / median["dense"], 3),
                    "term_by_term_over_ours": round(median["term_by_term"] / median["ours"], 3),
                }
            )
    row = {
        "in_features": in_features,
        "out_features": out_features,
        "num_terms": num_terms,
        "low_rank": low_rank,
        "plan": decided["plan"],
        "reason": decided["reason"],
        "planning_median_us": decided["median_us"],
        "max_relative_error": errors,
        "batches": batches,
    }
    print(json.dumps(row), flush=True)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--commit", default="unknown", help="of the checkout, for the record")
    parser.add_argument("--output", type=Path, required=True, help="JSON to write")
    arguments = parser.parse_args()
    versions = {"onnx": onnx.__version__, "onnxruntime-gpu": onnxruntime.__version__}
    result = {
        **about("gpu_export", arguments.commit, **versions),
        "cells": [bench_cell(cell) for cell in CELLS],
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
