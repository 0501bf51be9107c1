"""Conversion on a CPU: time, peak memory and output error by model, beside an earlier version of the package.

    python benchmarks/bench_convert_speed.py --threads 1 --out benchmarks/results/convert_speed.json
    git worktree add ../before COMMIT
    python benchmarks/bench_convert_speed.py --part --threads 1 --rows 64 --beside ../before --out FILE

Models are a BERT-base by its configuration with random weights (needs transformers), the first linear layer of vgg's
classifier, 25,088 to 4,096, and a digits classifier, trained before it is converted. Each conversion runs in a process
by itself, both versions in turn; the outputs have to be as close to the original's, within a hundredth, before times
count. CPU time is that of all threads together: on a machine that does nothing else, the time is what it is by
the number of threads, or little more. --part converts two layers of BERT-base and a layer of half of vgg's widths.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
# models and their ratios
CASES = {"bert-base": (0.5,), "vgg": (0.5,), "digits": (0.5, 0.25)}
# calibration rows, and tokens per row
ROWS, TOKENS, BATCH = 256, 32, 32
PARITY = 0.01
GIB = 2**30


def bert_base(rows: int, *, part: bool) -> tuple[Any, list[Any]]:
    import torch
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    model = BertModel(BertConfig(num_hidden_layers=2 if part else 12)).eval()
    ids = torch.randint(0, 30522, (rows, TOKENS), generator=torch.Generator().manual_seed(1))
    return model, list(ids.split(BATCH))


def vgg(rows: int, *, part: bool) -> tuple[Any, list[Any]]:
    import torch
    from torch import nn

    torch.manual_seed(0)
    d_in, d_out = (12544, 2048) if part else (25088, 4096)
    model = nn.Sequential(nn.Linear(d_in, d_out), nn.ReLU(), nn.Linear(d_out, 10)).eval()
    inputs = torch.randn(rows, d_in, generator=torch.Generator().manual_seed(1)).relu_()
    return model, list(inputs.split(BATCH))


def digits(rows: int, *, part: bool) -> tuple[Any, list[Any]]:  # noqa: ARG001
    import torch
    from torch import nn

    import panther as pr

    data = pr.train.load_digits()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10))
    loader = torch.utils.data.DataLoader(data.train, 64, shuffle=True, generator=torch.Generator().manual_seed(0))
    pr.train.fit(model, loader, epochs=10)
    return model.eval(), list(data.train_x[:rows].split(BATCH))


def convert(name: str, ratio: float, rows: int, threads: int, *, part: bool) -> dict[str, Any]:
    """One conversion in this process."""
    import torch

    import panther as pr

    torch.set_num_threads(threads)
    model, calibration = {"bert-base": bert_base, "vgg": vgg, "digits": digits}[name](rows, part=part)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    parts: dict[str, float] = {}
    last = time.process_time()

    def step(part: str, _: int, __: int) -> None:
        nonlocal last
        now = time.process_time()
        parts[part] = parts.get(part, 0.0) + now - last
        last = now

    started, started_cpu = time.perf_counter(), time.process_time()
    report = pr.sketch_(model, ratio=ratio, calibration=calibration, on_step=step)
    return {
        "seconds": time.perf_counter() - started,
        "cpu_seconds": time.process_time() - started_cpu,
        "cpu_seconds_by_step": parts,
        "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB,
        "before_gib": before / GIB,
        "output_error": report.output_error,
        "stored": report.ratio,
        "linear_parameters": sum(layer.before.stored for layer in report.layers),
    }


def in_process(root: Path, name: str, ratio: float, arguments: argparse.Namespace) -> dict[str, Any]:
    """One conversion in a process that imports the package from a checkout."""
    call = f"benchmark.convert({name!r}, {ratio}, {arguments.rows}, {arguments.threads}, part={arguments.part})"
    code = (
        f"import sys, json; sys.path[:0] = [{str(root)!r}, {str(ROOT / 'benchmarks')!r}]; "
        f"import bench_convert_speed as benchmark; print(json.dumps({call}))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{name} in {root}: {done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def compared(name: str, ratio: float, arguments: argparse.Namespace) -> dict[str, Any]:
    """A model converted by both versions in turn; medians over the rounds."""
    sides = {"now": ROOT} | ({"before": arguments.beside.resolve()} if arguments.beside else {})
    runs: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    for _ in range(arguments.rounds):
        for side, root in sides.items():
            runs[side].append(in_process(root, name, ratio, arguments))
            print(name, ratio, side, json.dumps(runs[side][-1]), flush=True)
    row: dict[str, Any] = {"model": name, "ratio": ratio}
    for side, found in runs.items():
        parts = "cpu_seconds_by_step"
        row[side] = {key: statistics.median(run[key] for run in found) for key in found[0] if key != parts}
        row[side][parts] = found[-1][parts]
    if "before" in row:
        now, before = row["now"]["output_error"], row["before"]["output_error"]
        if now > (1 + PARITY) * before:
            raise SystemExit(f"{name} at {ratio}: the outputs are off by {now}, {before} before")
        row["cpu_time_of_before"] = row["now"]["cpu_seconds"] / row["before"]["cpu_seconds"]
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--beside", type=Path, help="a checkout of an earlier version")
    parser.add_argument("--rows", type=int, default=ROWS, help="of calibration")
    parser.add_argument("--part", action="store_true", help="a part of each large model")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    from serving.machine import about

    result = about(("torch", "numpy", "transformers")) | {"threads": arguments.threads, "rows": arguments.rows}
    result |= {"part": arguments.part, "tokens": TOKENS, "rounds": arguments.rounds, "beside": None}
    if arguments.beside:
        head = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=arguments.beside, capture_output=True, text=True, check=True
        )
        result["beside"] = head.stdout.strip()
    result["cases"] = [compared(name, ratio, arguments) for name in arguments.models for ratio in CASES[name]]
    text = json.dumps(result, indent=1) + "\n"
    if arguments.out:
        arguments.out.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
