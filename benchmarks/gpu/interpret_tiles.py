"""Results of the Triton kernels with the tiles of each GPU, computed by triton's interpreter on a CPU.

    TRITON_INTERPRET=1 python benchmarks/gpu/interpret_tiles.py --commit "$(git rev-parse HEAD)" --output FILE

Output and gradients are compared with float64. This tests which entries a tile covers, not the code that a GPU runs. It
needs triton, no GPU, and a release of numpy that turns arrays of one entry into numbers: with triton 3.6.0, numpy 2.2.6
works and 2.4.6 does not. The exit status is 1 if an error is over the tolerance.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import torch
import triton
from compile_tiles import DEVICES
from serving.machine import cpu_model
from torch import Tensor

from panther.nn.kernels import launch
from panther.nn.kernels.devices import Device

# rows, d_in, d_out, L, k, type and precision
CASES = (
    (40, 512, 200, 2, 32, torch.float32, "ieee"),
    (200, 512, 384, 2, 32, torch.float32, "tf32"),
    (200, 520, 384, 1, 64, torch.float16, "half"),
    (4100, 256, 130, 1, 16, torch.float16, "half"),
)
TOLERANCE = {torch.float32: 1e-6, torch.float16: 1e-3}
NAMES = ("y", "dx", "dS1", "dS2", "dbias")


def interpreted(self: launch.Launch, _: int, *tensors: Tensor) -> None:
    """Run every program of a launch, one after the other."""
    self._kernel[(self._programs, 1, 1)](*tensors, *self._numbers, **self._constants)


def empty(size: tuple[int, ...], stride: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A tensor on the CPU."""
    return torch.empty_strided(size, stride, dtype=dtype)


def errors(device: Device, case: tuple[Any, ...]) -> dict[str, float]:
    """Relative errors of the output and the gradients against float64."""
    rows, d_in, d_out, L, k, dtype, precision = case
    generator = torch.Generator().manual_seed(0)
    sizes = ((rows, d_in), (2 * L, d_in, k), (2 * L * k, d_out), (d_out,), (rows, d_out))
    x, A, B, bias, grad = (torch.randn(size, generator=generator).to(dtype) for size in sizes)
    learning = True
    plan = launch.LaunchPlan(
        learning, rows, dtype, (d_in, 1), (2 * L, d_in, k), d_out, dtype, dtype, dtype, precision, 0, device
    )
    y, H = plan.forward(x, A, B, bias)
    found = (y, *plan.backward((True,) * 4)(grad, x, H, A, B))
    X, As, Bs, G = x.double(), A.double().transpose(0, 1).flatten(1), B.double(), grad.double()
    h, dH, half = X @ As / (2 * L), G @ Bs.t() / (2 * L), L * k
    expected = (
        h @ Bs + bias.double(),
        dH @ As.t(),
        (X.t() @ dH[:, :half]).view(d_in, L, k).transpose(0, 1),
        (h[:, half:].t() @ G).view(L, k, d_out),
        G.sum(0),
    )
    return {
        name: float((one.double() - other).norm() / other.norm())
        for name, one, other in zip(NAMES, found, expected, strict=True)
    }


def main() -> int:
    """Compute, compare, print, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--commit", default="unknown", help="of the checkout, for the record")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    rows = []
    with (
        mock.patch.object(launch.Launch, "__call__", interpreted),
        mock.patch.object(launch, "_empty", empty),
        mock.patch.object(launch, "_current_stream", return_value=0),
    ):
        for (name, (_, device)), case in ((each, case) for each in DEVICES.items() for case in CASES):
            *sizes, dtype, precision = case
            rows.append({"device": name, "rows_d_in_d_out_L_k": sizes, "precision": precision})
            rows[-1] |= {"errors": errors(device, case), "tolerance": TOLERANCE[dtype]}
            print(json.dumps(rows[-1]), flush=True)
    result = {
        "what": "relative errors of the Triton kernels by device's tiles, in triton's interpreter on a CPU",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": arguments.commit,
        "machine": {"cpu": cpu_model(), "cores": os.cpu_count()},
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "triton": triton.__version__,
            "numpy": np.__version__,
        },
        "cases": rows,
    }
    if arguments.output:
        arguments.output.write_text(json.dumps(result, indent=1) + "\n")
    # an error that is no number is over it, too
    return int(not all(max(row["errors"].values()) <= row["tolerance"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
