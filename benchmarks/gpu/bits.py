"""Latency of quantized layers exported for CUDA, beside float32 and float16.

    python benchmarks/gpu/bits.py --commit "$(git rev-parse HEAD)" --output benchmarks/results/gpu_bits.json

Needs a GPU, onnxruntime-gpu and torch. A square linear layer, dense and of low rank, in each format. Each file is first
compared with what the layer computes in torch; then all are timed in turn: bound device buffers, one CUDA graph a
session where all nodes run on the device. TF32 is off.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

os.environ["ORT_DISABLE_TELEMETRY"] = "1"
sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np
import onnxruntime
import torch
from provenance import about
from torch import nn

import panther as pr
from panther.export import ExportError, export_onnx
from panther.export.ort import Target, load
from panther.export.planning.measure import median_us, runner

WIDTHS = (1024, 4096)
BATCH_SIZES = (1, 8, 64, 256)
CUDA = Target("cuda", 1)
# largest difference to the layer in torch, over the largest output
PARITY = {"float32": 1e-4, "float16": 1e-2, "int4": 2e-3}


def models(width: int) -> dict[str, tuple[nn.Module, str]]:
    """A model and the precision of its file, for each side."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(512, width, generator=generator) * torch.arange(1, width + 1) ** -0.2
    dense = nn.Sequential(nn.Linear(width, width)).eval()
    calibration = [part.cuda() for part in x.split(128)]
    low = copy.deepcopy(dense).cuda()
    pr.sketch_(low, ratio=0.25, calibration=calibration)
    found: dict[str, tuple[nn.Module, str]] = {"float32": (dense, "float32"), "float16": (dense, "float16")}
    blocks = pr.quantize.Blocks(bits=4, activation_bits=None)
    for side, base, weights in (
        ("int4", dense, blocks),
        ("int8", dense, "int8"),
        ("int4, a quarter of the parameters", low, blocks),
    ):
        model = copy.deepcopy(base).cuda()
        pr.quantize_(model, calibration=calibration, weights=weights)
        found[side] = (model.cpu(), "float32")
    low = low.cpu()
    found["float32, a quarter of the parameters"] = (low, "float32")
    found["float16, a quarter of the parameters"] = (low, "float16")
    return found


def opened(path: Path) -> tuple[Any, bool]:
    """A session, and whether all of it is one CUDA graph."""
    try:
        return load(path, CUDA, cuda_graph=True), True
    except ExportError as error:
        print(f"{path.name}: no CUDA graph: {str(error)[:200]}", flush=True)
        return load(path, CUDA), False


def bench_width(width: int) -> dict[str, Any]:
    x = torch.randn(256, width, generator=torch.Generator().manual_seed(1))
    rows: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        paths = {}
        for number, (side, (model, precision)) in enumerate(models(width).items()):
            path = Path(folder) / f"{number}.onnx"
            try:
                report = export_onnx(
                    model, x[:8], path, name="layer", target="cuda", precision=precision, batch_sizes=BATCH_SIZES
                )
            except ValueError as error:  # a format that can't be exported for CUDA is part of the result
                rows[side] = {"error": str(error)[:300]}
                print(side, rows[side], flush=True)
                continue
            with torch.no_grad():
                expected = model(x[:16]).numpy()
            session = load(path, CUDA)
            (y,) = session.run(None, {session.get_inputs()[0].name: x[:16].numpy()})
            error = float(np.abs(y - expected).max() / np.abs(expected).max())
            allowed = PARITY[precision if precision == "float16" else side.partition(",")[0]]
            if not error <= allowed:
                raise SystemExit(
                    f"{side} of width {width} is off by {error:.2g} of the largest output; nothing was timed"
                )
            paths[side] = path
            rows[side] = {"file_bytes": report.file_bytes, "off_by": error, "median_us": {}}
        for batch in BATCH_SIZES:
            runs = {}
            for side, path in paths.items():
                session, rows[side]["cuda_graph"] = opened(path)
                names = session.get_inputs()[0].name, session.get_outputs()[0].name
                runs[side] = runner(session, {names[0]: x[:batch].numpy()}, CUDA, {names[1]: (batch, width)})
            for side, value in median_us(runs, budget_s=1.5).items():
                rows[side]["median_us"][str(batch)] = round(value, 2)
    print(json.dumps({"width": width, "sides": rows}), flush=True)
    return {"width": width, "sides": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--commit", default="unknown", help="of the checkout, for the record")
    parser.add_argument("--output", type=Path, required=True, help="JSON to write")
    arguments = parser.parse_args()
    onnxruntime.preload_dlls()
    result = {
        **about("gpu_bits", arguments.commit, **{"onnxruntime-gpu": onnxruntime.__version__}),
        "cells": [bench_width(width) for width in WIDTHS],
    }
    arguments.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
