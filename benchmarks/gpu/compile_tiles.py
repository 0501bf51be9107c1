"""Compile the Triton kernels for GPUs that are not there, and hold their shared memory to each GPU's limit.

    python benchmarks/gpu/compile_tiles.py --commit "$(git rev-parse HEAD)" --output benchmarks/results/gpu_tiles.json

It needs triton, but no GPU: it records the launches that layers of many sizes and types would make on each device, and
compiles their kernels down to machine code for the device's architecture. Nothing runs, so this shows that a kernel
compiles and that a block gets the shared memory that it asks for, not that its results are right, nor its speed. The
exit status is 1 if a kernel asks for more.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
import triton
from serving.machine import cpu_model
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from panther.nn.kernels import launch
from panther.nn.kernels.devices import Device

DEVICES = {
    "A100": ("8.0", Device(108, 163 << 10, 8)),
    "A10": ("8.6", Device(72, 99 << 10, 8)),
    "L4": ("8.9", Device(58, 99 << 10, 8)),
    "RTX 4090": ("8.9", Device(128, 99 << 10, 8)),
    "H200": ("9.0", Device(132, 227 << 10, 9)),
}
# one of each size of shared memory
DEFAULT = ("A100", "L4", "H200")
HALF, SINGLE = torch.bfloat16, torch.float32
# of parameters, inputs and products, and the precision; float16 takes the tiles of bfloat16
TYPES = (
    (HALF, HALF, HALF, "half"),
    (SINGLE, SINGLE, HALF, "half"),
    (SINGLE, SINGLE, SINGLE, "tf32"),
    (SINGLE, SINGLE, SINGLE, "ieee"),
)
# d_in, d_out, L, k
LAYERS = ((100, 60, 1, 5), (8192, 8192, 1, 32), (4096, 4096, 2, 64))
ROWS = (32, 512, 8192)
NEEDS = ((True, True, True, True), (False, True, True, True))
# the grid of a quick run
QUICK = {"layers": ((100, 60, 1, 5), (4096, 4096, 2, 64)), "rows": (32, 8192), "types": TYPES[1:3]}
TILES = ("BM", "BF", "BC", "STAGES", "R_BR", "R_BF", "R_BC", "R_STAGES", "SPLITS", "H_SPLITS")
POINTERS = {HALF: "*bf16", SINGLE: "*fp32"}

Taken = tuple[launch.Launch, tuple[torch.dtype, ...]]


def empty(size: tuple[int, ...], stride: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A tensor without memory."""
    return torch.empty_strided(size, stride, dtype=dtype, device="meta")


def launches(device: Device, layers: Any, rows: Any, types: Any) -> Iterator[Taken]:
    """The launches that layers would make on a device, with their tensors' types."""
    taken: list[Taken] = []

    def record(self: launch.Launch, _: int, *tensors: Tensor) -> None:
        taken.append((self, tuple(tensor.dtype for tensor in tensors)))

    with (
        mock.patch.object(launch.Launch, "__call__", record),
        mock.patch.object(launch, "_empty", empty),
        mock.patch.object(launch, "_current_stream", return_value=0),
    ):
        for (d_in, d_out, L, k), N, (parameters, inputs, dtype, precision) in itertools.product(layers, rows, types):
            A_shape = (2 * L, d_in, k)
            W_dtype = dtype if launch.casts(N, parameters, dtype) else parameters
            x, A = (torch.empty(size, dtype=t, device="meta") for size, t in (((N, d_in), inputs), (A_shape, W_dtype)))
            B = torch.empty((2 * L * k, d_out), dtype=W_dtype, device="meta")
            bias = torch.empty(d_out, dtype=parameters, device="meta")
            for learning in (False, True):
                plan = launch.LaunchPlan(
                    learning, N, inputs, (d_in, 1), A_shape, d_out, parameters, parameters, dtype, precision, 0, device
                )
                y, H = plan.forward(x, A, B, bias)
                for needs in NEEDS if learning else ():
                    plan.backward(needs)(y, x, H, A, B)
            launch.FactorLayout((2 * L, d_in, k), d_out, parameters, dtype, 0)(A, B, bias)
    yield from taken


def source_of(launched: launch.Launch, types: tuple[torch.dtype, ...]) -> tuple[str, ASTSource]:
    """The kernel that triton compiles at a launch's first call with aligned tensors, and a key for it."""
    names = launched._kernel.arg_names
    signature = dict(zip(names, (POINTERS[dtype] for dtype in types), strict=False))
    constants = {(names.index(name),): value for name, value in launched._constants.items()}
    divisible = list(range(len(types)))
    general = {parameter.name for parameter in launched._kernel.params if parameter.do_not_specialize}
    for at, number in enumerate(launched._numbers, start=len(types)):
        if isinstance(number, float):
            signature[names[at]] = "fp32"
        elif number == 1 and names[at] not in general:
            constants[(at,)] = 1
        else:
            signature[names[at]] = "i32" if number < 1 << 31 else "i64"
            divisible += [at] * (number % 16 == 0 and names[at] not in general)
    signature = {name: signature.get(name, "constexpr") for name in names}
    attributes = {(at,): [["tt.divisibility", 16]] for at in divisible}
    key = repr((launched._kernel.__name__, signature, sorted(map(str, constants.items())), divisible, launched._warps))
    return key, ASTSource(launched._kernel, signature, constants, attributes)


def resources(cubin: bytes) -> tuple[int, int]:
    """Registers of a thread, and bytes of its stack, which holds spilled registers."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", file.name]
        told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", told)
    if found is None:
        raise ValueError(f"cuobjdump gives no registers: {told!r}")
    return int(found[1]), int(found[2])


def compiled(capability: str, device: Device, grid: dict[str, Any]) -> list[dict[str, Any]]:
    """Every kernel that the layers of a grid need on a device, compiled."""
    target = GPUTarget("cuda", int(capability.replace(".", "")), 32)
    seen, rows = set(), []
    for launched, types in launches(device, **grid):
        key, source = source_of(launched, types)
        if key in seen:
            continue
        seen.add(key)
        binary = triton.compile(source, target=target, options={"num_warps": launched._warps})
        registers, stack = resources(binary.asm["cubin"])
        constants = launched._constants
        rows.append(
            {
                "kernel": launched._kernel.__name__,
                "types": " ".join(POINTERS[dtype][1:] for dtype in types),
                "precision": constants.get("PRECISION"),
                "tiles": {name: constants[name] for name in TILES if name in constants},
                "warps": launched._warps,
                "shared_bytes": binary.metadata.shared,
                "registers": registers,
                "stack_bytes": stack,
            }
        )
    return rows


def _on_a_line(found: re.Match[str]) -> str:
    return "{" + re.sub(r"\s+", " ", found[1]) + "}"


def main() -> int:
    """Compile, print the largest of each kernel, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--commit", default="unknown", help="of the checkout, for the record")
    parser.add_argument("--devices", nargs="+", choices=DEVICES, default=DEFAULT, help="by default %(default)s")
    parser.add_argument("--quick", action="store_true", help="a few layers and types")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    grid = QUICK if arguments.quick else {"layers": LAYERS, "rows": ROWS, "types": TYPES}
    found = []
    for name in arguments.devices:
        capability, device = DEVICES[name]
        rows = compiled(capability, device, grid)
        over = [row for row in rows if row["shared_bytes"] > device.shared_bytes]
        found.append(
            {
                "device": name,
                "capability": capability,
                "processors": device.processors,
                "shared_limit": device.shared_bytes,
                "compiled": len(rows),
                "most_shared_bytes": max(row["shared_bytes"] for row in rows),
                "over_the_limit": len(over),
                "with_stack": sum(row["stack_bytes"] > 0 for row in rows),
                "kernels": rows,
            }
        )
        print(json.dumps({key: value for key, value in found[-1].items() if key != "kernels"}), flush=True)
        for row in over:
            print("over the limit:", json.dumps(row))
    result = {
        "what": "shared memory and registers of the Triton kernels by device: compiled, not run",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": arguments.commit,
        "machine": {"cpu": cpu_model(), "cores": os.cpu_count()},
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "triton": triton.__version__},
        "devices": found,
    }
    if arguments.output:
        # a kernel a line
        text = json.dumps(result, indent=1)
        text = re.sub(r'\{\s+("kernel".*?"stack_bytes": \d+)\s+\}', _on_a_line, text, flags=re.DOTALL)
        arguments.output.write_text(text + "\n")
    return int(any(row["over_the_limit"] for row in found))


if __name__ == "__main__":
    sys.exit(main())
