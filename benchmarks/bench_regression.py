"""Compares this version with an earlier one: the request path, overload, and the layers, both sides in turn.

The earlier version is checked out beside this one. Both servers serve the shipped model from one core, driven from the
other, and are asked in turn within each round; answers are compared with onnxruntime's own first. The layers of both
are timed in separate processes, in turn, after their outputs were compared. Ratios are new over old: below 1 is faster
for times, above 1 for rates.

    python benchmarks/bench_regression.py --base COMMIT            about ten minutes on two cores
    python benchmarks/bench_regression.py --base COMMIT --quick    a smoke test, not a measurement
"""

import argparse
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
sys.path.insert(0, str(Path(__file__).parent))

from bench_overload import MAX_QUEUE_MS, costly_model, overload
from bench_serving import CELLS, ROOT, Cell, drive, median, parity
from serving import sides as known
from serving.machine import about

HERE = Path(__file__).parent
LAYERS = [(784, 512, 2, 64), (1024, 1024, 2, 64), (4096, 4096, 2, 64)]
BATCHES = [1, 32, 256]
PEAKS = 3
"""Runs of each side for its peak, in turn: a run alone differs by 20 % where others share the memory of the machine."""
TIME_LAYERS = """
import json, sys, time, torch
from panther.nn import SKLinear
torch.set_num_threads(1)
layers, batches, seconds = json.loads(sys.argv[1])
found = {}
for d_in, d_out, terms, rank in layers:
    torch.manual_seed(0)
    layer = SKLinear(d_in, d_out, terms, rank)
    for batch in batches:
        x = torch.randn(batch, d_in, requires_grad=True)
        grad = torch.randn(batch, d_out)
        def forward():
            with torch.no_grad():
                return layer(x)
        def step():
            layer.zero_grad()
            x.grad = None
            layer(x).backward(grad)
        for name, run in (("forward", forward), ("forward+backward", step)):
            for _ in range(3):
                run()
            times, end = [], time.perf_counter() + seconds
            while time.perf_counter() < end or len(times) < 5:
                began = time.thread_time()
                run()
                times.append(time.thread_time() - began)
            times.sort()
            found[f"{d_in}x{d_out} L{terms} k{rank}, {batch} rows, {name}"] = 1e6 * times[len(times) // 2]
        found.setdefault("checks", []).append(layer(x).double().sum().item())
print(json.dumps(found))
"""


def checked_out(commit, folder):
    """The tree of an earlier commit, in a folder without history."""
    tree = folder / "base"
    tree.mkdir()
    archive = subprocess.run(["git", "archive", commit], cwd=ROOT, check=True, capture_output=True).stdout
    subprocess.run(["tar", "-x", "-C", str(tree)], input=archive, check=True)
    return tree


def server(name, tree, models, *arguments):
    side = known.ours(models)
    side.name, side.folder = name, tree
    side.environment = {**side.environment, "PYTHONPATH": str(tree)}
    side.command += arguments
    return side


def ratio(new, old):
    return {key: round(new[key] / old[key], 3) for key in new if isinstance(old.get(key), int | float) and old[key]}


def serving(trees, arguments, folder, log):
    """The cells of ``bench_serving.py``; the sides alternate within a round, and so does who goes first."""
    model = ROOT / "models" / "digits" / "1" / "model.onnx"
    # without the model's settings, which an earlier version may not support
    shutil.copytree(model.parent, folder / "served" / "digits" / "1")
    sides = [server(name, tree, folder / "served") for name, tree in trees.items()]
    with contextlib.ExitStack() as stack:
        for side in sides:
            stack.callback(side.stop)
            side.start(model, arguments.server_core, log)
            parity(side, model, CELLS)
        runs = {side.name: {cell.name: [] for cell in CELLS} for side in sides}
        for number in range(arguments.rounds):
            for cell in CELLS:
                for side in sides if number % 2 else reversed(sides):
                    found = drive(side, cell, arguments.client_core, arguments.seconds, folder)
                    runs[side.name][cell.name].append(found)
            print(f"serving: round {number + 1} of {arguments.rounds}", file=sys.stderr)
    table = {name: {cell: median(items) for cell, items in cells.items()} for name, cells in runs.items()}
    return {**table, "new over old": {cell: ratio(table["new"][cell], table["old"][cell]) for cell in table["new"]}}


def overloaded(trees, arguments, folder, log):
    """Three times the load that each can take, of a model whose runs take milliseconds; medians over the rounds."""
    model = folder / "models" / "digits" / "1" / "model.onnx"
    costly_model(model)
    runs = {name: [] for name in trees}
    for number in range(max(1, arguments.rounds // 2)):
        sides = [
            server(name, tree, folder / "models", "--max-queue-ms", str(MAX_QUEUE_MS)) for name, tree in trees.items()
        ]
        if number % 2:
            sides.reverse()
        with contextlib.ExitStack() as stack:
            for side in sides:
                stack.callback(side.stop)
                side.start(model, arguments.server_core, log)
                parity(side, model, [Cell("parity", "json", 1, 4)])
            cell = Cell("peak", "json", 1, 32, "float32")
            peaks = {side.name: [] for side in sides}
            for _ in range(PEAKS):
                for side in sides:
                    peaks[side.name].append(drive(side, cell, arguments.client_core, arguments.seconds, folder))
            for side in sides:
                peak = median(peaks[side.name])
                rate = peak["rate"]
                found = overload(side, 3 * rate, 2 * arguments.seconds, arguments.client_core, folder, "/health/ready")
                runs[side.name].append(
                    {
                        "peak_per_s": rate,
                        "peak_cpu_us": peak["cpu_us"],
                        "goodput_of_peak": found["goodput_per_s"] / rate,
                        "goodput_per_s": found["goodput_per_s"],
                        "p99_ms": found["p99_ms"],
                        "slowest_probe_ms": found["probe"]["max_ms"],
                        "resident_mib": found["resident_mib"]["after"],
                    }
                )
        print(f"overload: round {number + 1}", file=sys.stderr)
    table = {
        name: {key: round(statistics.median(run[key] for run in items), 3) for key in items[0]}
        for name, items in runs.items()
    }
    return {**table, "new over old": ratio(table["new"], table["old"])}


def layers(trees, arguments):
    """Times of the thread, so that other processes on the machine count for little."""
    asked = json.dumps([LAYERS[:1] if arguments.quick else LAYERS, BATCHES, 0.05 if arguments.quick else 0.3])
    runs = {name: [] for name in trees}
    for number in range(arguments.rounds):
        for name, tree in trees.items() if number % 2 else reversed(trees.items()):
            environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
            command = ["taskset", "-c", str(arguments.server_core), sys.executable, "-c", TIME_LAYERS, asked]
            done = subprocess.run(command, cwd=tree, env=environment, check=True, capture_output=True, text=True)
            runs[name].append(json.loads(done.stdout))
        print(f"layers: round {number + 1} of {arguments.rounds}", file=sys.stderr)
    checks = [run.pop("checks") for items in runs.values() for run in items]
    for check in checks:
        if any(abs(mine - first) > 1e-3 * max(1.0, abs(first)) for mine, first in zip(check, checks[0], strict=True)):
            raise SystemExit(f"the layers of the two versions differ: {check} and {checks[0]}")
    table = {name: median(items) for name, items in runs.items()}
    return {**table, "new over old": ratio(table["new"], table["old"])}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", required=True, help="the earlier commit")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=int, default=3, help="of each run of wrk")
    parser.add_argument("--server-core", type=int, default=0)
    parser.add_argument("--client-core", type=int, default=1)
    parser.add_argument("--only", choices=("serving", "overload", "layers"))
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/regression.json")
    parser.add_argument("--quick", action="store_true", help="one short round; nothing is written unless --output")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rounds = arguments.seconds = 1
    elif arguments.output is None:
        arguments.output = HERE / "results" / "regression.json"
    base = subprocess.run(
        ["git", "rev-parse", "--verify", f"{arguments.base}^{{commit}}"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    ).stdout.strip()  # fmt: skip
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        trees = {"old": checked_out(base, folder), "new": ROOT}
        result = {"benchmark": "regression", **about(), "base": base, "rounds": arguments.rounds}
        with (folder / "log").open("w") as log:
            if arguments.only in (None, "serving"):
                result["serving"] = serving(trees, arguments, folder, log)
            if arguments.only in (None, "overload"):
                result["overload"] = overloaded(trees, arguments, folder, log)
        if arguments.only in (None, "layers"):
            result["layers"] = layers(trees, arguments)
    for part in ("serving", "overload", "layers"):
        if part in result:
            print(part, json.dumps(result[part]["new over old"], indent=1))
    if arguments.output is not None:
        arguments.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
