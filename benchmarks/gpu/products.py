"""The library's products of a sketched layer in two ways each: where A is laid out first, and for the gradient of S1s.

    python benchmarks/gpu/products.py --commit "$(git rev-parse HEAD)" --output benchmarks/results/gpu_products.json

The limits in `panther.nn.kernels.products` come from these figures. Both ways first give the same values; then they are
replayed as CUDA graphs in turn, which leaves only device time.
"""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path

import torch
from provenance import about
from torch import Tensor
from train import Run, as_graph, measure, median_us

from panther.nn.kernels import products

SHAPES = ((4096, 4, 128), (4096, 2, 64), (8192, 1, 16), (3200, 2, 64), (1024, 2, 32), (1024, 4, 64))
FORWARD_ROWS = (32, 128, 512, 1024, 2048, 8192)
GRADIENT_ROWS = (1024, 2048, 8192)
MODES = {"float32": 1e-5, "tf32": 2e-3, "bfloat16": 1.5e-2}


def normal(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(*shape, device="cuda", dtype=dtype)


def forward_ways(width: int, num_terms: int, low_rank: int, rows: int, dtype: torch.dtype) -> dict[str, Run]:
    A = normal(2 * num_terms, width, low_rank, dtype=dtype)
    B = normal(2 * num_terms * low_rank, width, dtype=dtype)
    x, bias = normal(rows, width, dtype=dtype), normal(width, dtype=dtype)
    return {
        "laid_out": lambda: products.forward(x, bias, A, B, dtype)[0],
        "as_they_are": lambda: products.forward_by_terms(x, bias, A, B)[0],
    }


def gradient_ways(width: int, num_terms: int, low_rank: int, rows: int, dtype: torch.dtype) -> dict[str, Run]:
    x, dH = normal(rows, width, dtype=dtype), normal(rows, 2 * num_terms * low_rank, dtype=dtype)
    return {
        "one_product": lambda: products.gradient_by_one_product(x, dH, num_terms, low_rank),
        "batched": lambda: products.batched_gradient(x, dH, num_terms, low_rank, dtype),
    }


def cell(ways: dict[str, Run], tolerance: float) -> dict:
    first, second = (run().double() for run in ways.values())
    error = ((first - second).norm() / second.norm()).item()
    if not error <= tolerance:
        raise SystemExit(f"{' and '.join(ways)} differ by {error:.2g}")
    times = measure({name: as_graph(run) for name, run in ways.items()})
    return {"difference": float(f"{error:.2g}"), "median_us": {name: median_us(found) for name, found in times.items()}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--commit", default="unknown", help="of the checkout, for the record")
    parser.add_argument("--output", type=Path, required=True, help="JSON to write")
    arguments = parser.parse_args()
    result = about("gpu_products", arguments.commit)
    rows: list[dict] = []
    for mode, shape in itertools.product(MODES, SHAPES):
        torch.backends.cuda.matmul.fp32_precision = "tf32" if mode == "tf32" else "ieee"
        dtype = torch.bfloat16 if mode == "bfloat16" else torch.float32
        asked = [("forward", forward_ways, count) for count in FORWARD_ROWS]
        asked += [("gradient of S1s", gradient_ways, count) for count in GRADIENT_ROWS if dtype == torch.float32]
        for what, ways, count in asked:
            row = {"what": what, "mode": mode, "features": shape[0], "num_terms": shape[1], "low_rank": shape[2]}
            rows.append({**row, "rows": count, **cell(ways(*shape, count, dtype), MODES[mode])})
            print(json.dumps(rows[-1]), flush=True)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps({**result, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
