"""Training on one GPU and on two: parity, speed, and a resume after a kill, by `fit` and `distill_` under torchrun.

    PYTHONPATH=. python benchmarks/gpu/distributed.py --commit "$(git rev-parse HEAD)" \\
        --output benchmarks/results/gpu_distributed.json

The model is the transformer of ``pair.py``: 8 blocks, 2048 and 8192 wide, SKLinear with L = 2 and k = 64. Several
processes train by DistributedDataParallel ("ddp") or by FSDP2 ("fsdp2", ``shard=True``).

parity: losses and parameters after some steps in float32, on two processes against one with the same global batch.
scaling: samples per second in bfloat16, the batches already on the device. A time is that of a round of steps between
two synchronizations. Weak scaling is two GPUs against one with half of the global batch, strong scaling against one
with the same global batch. One GPU and two GPUs take turns, each with processes of its own.
distill: the same for `distill_`, the forward pass of the dense teacher included, without its measurements.
resume: two processes with sharded checkpoints, one of them killed by SIGKILL, against an uninterrupted run.

``--cpu`` is a dry run with gloo and tiny sizes.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from distributed_parts import PARITY_BATCH, PARITY_STEPS, RESUME_BATCHES, RESUME_EPOCHS, work
from pair import BLOCKS, HEADS, HIDDEN, RANKS, WIDTH
from provenance import device

PARTS = ("parity", "scaling", "distill", "resume")
# relative error: of the losses, and of the change of the parameters in the Frobenius norm
PARITY = {"loss": 1e-5, "update": 1e-3}
RESUME = 1e-3
GOAL = 1.8
SIZES = {"width": WIDTH, "hidden": HIDDEN, "heads": HEADS}
TINY = {"width": 64, "hidden": 128, "heads": 4}


class Launcher:
    """Starts this script's processes, alone or by torchrun.

    Args:
        arguments: of the command line.
        folder: for files that the processes leave.
    """

    def __init__(self, arguments: argparse.Namespace, folder: Path) -> None:
        self.folder, self.gpus = folder, arguments.gpus
        self.own = ["--folder", str(folder), "--steps", str(arguments.steps), "--rounds", str(arguments.rounds)]
        self.own += ["--batches", *map(str, arguments.batches), "--distill-batch", str(arguments.distill_batch)]
        self.own += ["--cpu"] * arguments.cpu
        self.environment = {**os.environ, "NCCL_NVLS_ENABLE": "0", "OMP_NUM_THREADS": "1"}
        if arguments.cpu:
            self.environment |= {"CUDA_VISIBLE_DEVICES": "", "GLOO_SOCKET_IFNAME": "lo"}

    def __call__(self, parts: list[str], *, together: bool, restarts: int = 0, kill: bool = False) -> dict[str, Any]:
        """What the processes found in their parts; nothing if a process failed."""
        found = self.folder / "found.json"
        found.unlink(missing_ok=True)
        script = [__file__, "--found", str(found), "--parts", *parts, *self.own, *["--kill"] * kill]
        command = [sys.executable, *script]
        if together:
            with socket.create_server(("127.0.0.1", 0)) as listener:
                endpoint = f"127.0.0.1:{listener.getsockname()[1]}"
            agent = ["-m", "torch.distributed.run", "--nproc-per-node", str(self.gpus), "--max-restarts", str(restarts)]
            agent += ["--rdzv-backend", "c10d", "--rdzv-endpoint", endpoint, "--rdzv-id", "benchmark"]
            command = [sys.executable, *agent, *script]
        print(f"{self.gpus if together else 1} process(es): {', '.join(parts)}", flush=True)
        code = subprocess.run(command, env=self.environment, check=False).returncode
        if code and not kill:
            raise SystemExit(f"a process failed with {code}")
        return {} if code else json.loads(found.read_text())


def compare_parity(losses: dict[str, list[float]], folder: Path) -> dict[str, Any]:
    """Each way of several processes against one process.

    Raises:
        SystemExit: they differ by more than the tolerance.
    """
    one = torch.load(folder / "parity-one.pt")
    result: dict[str, Any] = {"steps": PARITY_STEPS, "batch": PARITY_BATCH, "precision": "float32", "tolerance": PARITY}
    result["losses"] = losses

    def norm(tensors: Any) -> float:
        return sum(float(tensor.double().square().sum()) for tensor in tensors) ** 0.5

    for way in ("ddp", "fsdp2"):
        other = torch.load(folder / f"parity-{way}.pt")["updates"]
        off = norm(update - other[name] for name, update in one["updates"].items())
        errors = {
            "loss": max(abs(a - b) / abs(a) for a, b in zip(losses["one"], losses[way], strict=True)),
            "update": off / norm(one["updates"].values()),
            "parameters": off / norm(value + one["updates"][name] for name, value in one["before"].items()),
        }
        result[way] = {name: float(f"{error:.2g}") for name, error in errors.items()}
        if not all(errors[name] <= limit for name, limit in PARITY.items()):
            raise SystemExit(f"{way} differs from one process: {errors}, allowed {PARITY}")
    return result


def summed_up(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each cell, from all its rounds, with its speed against one GPU.

    ``weak`` is against one GPU with the same batch a GPU, ``strong`` against one GPU with the same global batch.
    """
    cells: dict[tuple[int, str, int], dict[str, Any]] = {}
    for each in rows:
        cell = cells.setdefault((each["gpus"], each["way"], each["batch"]), {**each, "step_ms": []})
        cell["step_ms"] += each["step_ms"]
    for cell in cells.values():
        cell["median_ms"] = round(statistics.median(cell["step_ms"]), 3)
        cell["samples_per_s"] = round(1000 * cell["batch"] / cell["median_ms"], 1)
    for (gpus, _, batch), cell in cells.items():
        for kind, alone in (("weak", batch // gpus), ("strong", batch)):
            if gpus > 1 and (1, "one", alone) in cells:
                ratio = cell["samples_per_s"] / cells[1, "one", alone]["samples_per_s"]
                cell[f"{kind}_ratio"] = round(ratio, 3)
    return list(cells.values())


def resume(launch: Launcher, whole: dict[str, Any]) -> dict[str, Any]:
    """A run of which a process is killed, against one of which none is.

    Raises:
        SystemExit: no process was killed, or the losses differ.
    """
    found, restarted = launch(["resume"], together=True, restarts=1, kill=True), "torchrun"
    if not (launch.folder / "killed").exists():
        raise SystemExit("no process was killed")
    if not found:
        # see docs/training.md, "Several machines"
        found, restarted = launch(["resume"], together=True, kill=True), "the same command again"
    again = found["resume"]
    steps = RESUME_EPOCHS * RESUME_BATCHES
    error = max(abs(a - b) / abs(a) for a, b in zip(whole["losses"], again["losses"], strict=True))
    result = {
        "steps": steps, "restarted_by": restarted, "losses": whole["losses"], "losses_after_kill": again["losses"],
        "error": float(f"{error:.2g}"), "tolerance": RESUME,
    }  # fmt: skip
    if not again["batches_read"] < whole["batches_read"] or not error <= RESUME:
        raise SystemExit(f"the run that was killed did not resume, or differs: {result}")
    return result


def machine(*, cpu: bool) -> dict[str, Any]:
    if cpu:
        return {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    return {**device(), "gpus": torch.cuda.device_count()}


def measure(arguments: argparse.Namespace) -> None:
    result: dict[str, Any] = {
        "benchmark": "gpu_distributed",
        "commit": arguments.commit,
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(cpu=arguments.cpu),
        "versions": {"python": platform.python_version(), "torch": str(torch.__version__), "cuda": torch.version.cuda},
        "settings": {"steps": arguments.steps, "rounds": arguments.rounds, "visits": arguments.visits},
        "model": {"blocks": arguments.blocks, "length": arguments.length, "rank": RANKS[0], **arguments.sizes},
        "goal": GOAL,
    }
    if not arguments.cpu:
        nccl = ".".join(map(str, torch.cuda.nccl.version()))
        result["versions"]["nccl"] = nccl

    def save() -> None:
        # after each part, so that a run that is cut short leaves what it has
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps(result, indent=1) + "\n")

    with tempfile.TemporaryDirectory() as folder:
        launch = Launcher(arguments, Path(folder))
        rows: dict[str, list[dict[str, Any]]] = {"scaling": [], "distill": []}
        whole = None
        for visit in range(arguments.visits):
            timed = [part for part in ("scaling", "distill") if part in arguments.parts]
            first = ["parity"] if visit == 0 and "parity" in arguments.parts else []
            last = ["resume"] if visit == 0 and "resume" in arguments.parts else []
            alone = launch([*first, *timed], together=False) if first or timed else {}
            both = launch([*first, *timed, *last], together=True) if first or timed or last else {}
            for part in timed:
                rows[part] += [*alone[part], *both[part]]
                result[part] = summed_up(rows[part])
            if first:
                result["parity"] = compare_parity(alone["parity"] | both["parity"], Path(folder))
            whole = both.get("resume", whole)
            save()
        if whole is not None:
            result["resume"] = resume(launch, whole)
            save()
    report(result)


def report(result: dict[str, Any]) -> None:
    for part in ("parity", "resume"):
        if part in result:
            print(f"{part}: {json.dumps(result[part])}")
    for part in ("scaling", "distill"):
        for cell in result.get(part, ()):
            ratios = [f"{kind} {cell[f'{kind}_ratio']}" for kind in ("weak", "strong") if f"{kind}_ratio" in cell]
            shape = f"{cell['gpus']} GPU, {cell['way']}, batch {cell['batch']}"
            speed = f"{cell['median_ms']:.1f} ms, {cell['samples_per_s']:.0f}/s"
            print(f"{part}: {shape}: {speed}, {cell['peak_mib']} MiB {' '.join(ratios)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--commit", default="unknown", help="of the checkout, for the record")
    parser.add_argument("--output", type=Path, help="JSON to write")
    parser.add_argument("--parts", nargs="+", default=PARTS, choices=PARTS)
    parser.add_argument("--steps", type=int, default=20, help="of a round")
    parser.add_argument("--rounds", type=int, default=3, help="of a visit")
    parser.add_argument("--visits", type=int, default=2, help="of one GPU and of two, in turn")
    parser.add_argument("--batches", type=int, nargs="+", help="global batches of scaling, even numbers")
    parser.add_argument("--distill-batch", type=int, help="global batch of distill, an even number")
    parser.add_argument("--cpu", action="store_true", help="a dry run with gloo")
    for name in ("--folder", "--found"):
        parser.add_argument(name, type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--kill", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.gpus = 2
    arguments.sizes, arguments.blocks, arguments.length = (TINY, 2, 16) if arguments.cpu else (SIZES, BLOCKS, 1024)
    arguments.batches = arguments.batches or ([4, 8] if arguments.cpu else [16, 32, 64])
    # of which the teacher's outputs of half a batch are too large to be kept, so that it runs in every step
    arguments.distill_batch = arguments.distill_batch or (8 if arguments.cpu else 32)
    if any(size < 2 or size % 2 for size in (*arguments.batches, arguments.distill_batch)):
        parser.error(f"the batches ({arguments.batches}, {arguments.distill_batch}) must be even numbers")
    if arguments.found is not None:
        work(arguments)
    elif arguments.output is None:
        parser.error("--output is missing")
    else:
        measure(arguments)


if __name__ == "__main__":
    main()
