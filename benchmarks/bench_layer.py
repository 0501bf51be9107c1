"""SKLinear against the batched-product formulation and nn.Linear: forward, and forward with backward.

Proves first that the sketched sides agree, outputs and gradients, then times all sides in turn in one run:

    python benchmarks/bench_layer.py --threads 1 --out benchmarks/results/bench_layer.json
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from panther.nn import SKLinear

CELLS = ((784, 512, 2, 64), (1024, 512, 2, 32), (4096, 4096, 4, 128), (4096, 4096, 2, 64), (8192, 8192, 1, 16))
BATCHES = (1, 32, 256)
ROUNDS = 11


def batched_products(layer: SKLinear, x: Tensor) -> Tensor:
    """Term by term: 2 x (bmm, bmm), mean over the terms, add."""
    rows = x.expand(layer.num_terms, *x.shape)
    first = torch.bmm(torch.bmm(rows, layer.S1s), layer.U1s).mean(0)
    second = torch.bmm(torch.bmm(rows, layer.U2s), layer.S2s).mean(0)
    return (first + second) * 0.5 + layer.bias


def sides(layer: SKLinear, dense: nn.Linear) -> dict[str, tuple[Callable[[Tensor], Tensor], list[nn.Parameter]]]:
    return {
        "ours": (layer, [*layer.parameters()]),
        "batched": (lambda x: batched_products(layer, x), [*layer.parameters()]),
        "dense": (dense, [*dense.parameters()]),
    }


def forward(function: Callable[[Tensor], Tensor], x: Tensor) -> Callable[[], None]:
    def run() -> None:
        with torch.no_grad():
            function(x)

    return run


def forward_backward(
    function: Callable[[Tensor], Tensor], parameters: list[nn.Parameter], x: Tensor, grad: Tensor
) -> Callable[[], None]:
    def run() -> None:
        torch.autograd.grad(function(x), [x, *parameters], grad)

    return run


def prove_parity(layer: SKLinear, x: Tensor, grad: Tensor) -> float:
    """Compare outputs and gradients; return the largest difference over the largest value of its tensor."""
    worst = 0.0
    results = []
    for function in (layer, lambda x: batched_products(layer, x)):
        y = function(x)
        results.append([y, *torch.autograd.grad(y, [x, *layer.parameters()], grad)])
    for ours, theirs in zip(*results, strict=True):
        worst = max(worst, ((ours - theirs).abs().max() / theirs.abs().max()).item())
    if worst > 1e-4:
        raise SystemExit(f"the sides differ by {worst:.2g} for {layer} at {len(x)} rows")
    return worst


def measure(
    runs: dict[str, Callable[[], None]], seconds: float, clock: Callable[[], float]
) -> dict[str, dict[str, float]]:
    """Time the sides in turn, in an order that changes from round to round, over at least ROUNDS rounds.

    A turn is as many calls as take two milliseconds, twice: at the first, not counted, the caches and the allocator
    take to the side, as in a loop of its own. Counted is the quicker half of the rounds, all sides of a round together:
    the rest are those that other processes disturbed.

    Returns:
        For each side the median, smallest and largest of the microseconds a call.
    """
    repeats = {}
    for name, run in runs.items():
        run()
        start = clock()
        run()
        repeats[name] = max(1, int(0.002 / (clock() - start)))
    order = list(runs)
    rounds: list[dict[str, float]] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(rounds) < ROUNDS:
        times = {}
        for name in order:
            run = runs[name]
            for _ in range(repeats[name]):
                run()
            start = clock()
            for _ in range(repeats[name]):
                run()
            times[name] = (clock() - start) / repeats[name] * 1e6
        rounds.append(times)
        order = order[1:] + order[:1]
    # normalized by its median, so that fast and slow sides count the same
    typical = {name: statistics.median(times[name] for times in rounds) for name in runs}
    rounds.sort(key=lambda times: sum(times[name] / typical[name] for name in runs))
    quick = rounds[: (len(rounds) + 1) // 2]
    return {
        name: {
            "median_us": round(statistics.median(times[name] for times in quick), 1),
            "min_us": round(min(times[name] for times in quick), 1),
            "max_us": round(max(times[name] for times in quick), 1),
        }
        for name in runs
    }


def geometric_mean(values: list[float]) -> float:
    return math.exp(statistics.fmean(map(math.log, values)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of torch")
    parser.add_argument("--seconds", type=float, default=1.5, help="of measuring for a cell and a pass")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    # with one thread the time that it ran is the time that it takes on a machine of its own
    clock = time.thread_time if arguments.threads == 1 else time.perf_counter
    rows = []
    print(
        f"{'layer':<20}{'batch':>6}  {'pass':<17}{'ours, µs':>10}{'batched':>10}{'dense':>11}   batched, dense : ours"
    )
    for d_in, d_out, L, k in CELLS:
        layer, dense = SKLinear(d_in, d_out, L, k), nn.Linear(d_in, d_out)
        for batch in BATCHES:
            x = torch.randn(batch, d_in, requires_grad=True)
            grad = torch.randn(batch, d_out)
            difference = prove_parity(layer, x, grad)
            for name, timed in (
                ("forward", {side: forward(f, x) for side, (f, _) in sides(layer, dense).items()}),
                (
                    "forward+backward",
                    {side: forward_backward(f, p, x, grad) for side, (f, p) in sides(layer, dense).items()},
                ),
            ):
                result = measure(timed, arguments.seconds, clock)
                ours, batched, twin = (result[side]["median_us"] for side in ("ours", "batched", "dense"))
                rows.append(
                    {
                        "in_features": d_in,
                        "out_features": d_out,
                        "num_terms": L,
                        "low_rank": k,
                        "batch": batch,
                        "pass": name,
                        "parity_max_relative_difference": difference,
                        **result,
                        "batched_over_ours": round(batched / ours, 3),
                        "dense_over_ours": round(twin / ours, 3),
                    }
                )
                cell = f"{d_in}x{d_out} L{L} k{k}"
                print(
                    f"{cell:<20}{batch:>6}  {name:<17}{ours:>10.1f}{batched:>10.1f}{twin:>11.1f}"
                    f"{batched / ours:>9.2f}x {twin / ours:>7.2f}x",
                    flush=True,
                )
    summary = {}
    for name in ("forward", "forward+backward"):
        ratios = [row["batched_over_ours"] for row in rows if row["pass"] == name]
        summary[name] = {"geometric_mean": round(geometric_mean(ratios), 3), "smallest": min(ratios)}
        print(f"{name}: {summary[name]['geometric_mean']:.2f}x the batched products, at least {min(ratios):.2f}x")
    everything = [row["batched_over_ours"] for row in rows]
    summary["all"] = {"geometric_mean": round(geometric_mean(everything), 3), "smallest": min(everything)}
    if arguments.out is not None:
        report = {
            "benchmark": "bench_layer",
            **environment(arguments.threads),
            "clock": clock.__name__,
            "summary": summary,
            "rows": rows,
        }
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(report, indent=1) + "\n")


def environment(threads: int) -> dict[str, object]:
    def first_line(*command: str) -> str:
        done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent, check=False)
        return done.stdout.strip() or "unknown"

    cpu = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        models = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        cpu = models[0] if models else cpu
    return {
        "commit": first_line("git", "rev-parse", "HEAD"),
        "machine": {"cpu": cpu, "cores": os.cpu_count(), "system": platform.platform()},
        "threads": threads,
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
    }


if __name__ == "__main__":
    main()
