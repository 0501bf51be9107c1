"""Hot reload: its cost for concurrent requests, and its memory.

The server has one core, and serves two versions of one model file. First its answers are compared with onnxruntime's
own. Then requests arrive at random at a steady rate from the other core, in turn without and with a reload each second:
the versions change places each time, loaded and warmed up beside the one that serves. Last come 500 reloads as fast as
they go, with the resident memory after each fifty.

    python benchmarks/bench_reload.py            about two and a half minutes
    python benchmarks/bench_reload.py --quick    a smoke test, not a measurement
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
from bench_serving import Cell, parity
from serving import sides as known
from serving.machine import about, conclude, print_rules

HERE = Path(__file__).parent
ROOT = HERE.parent
NAME = "digits"


def post(side, path, document=None):
    data = b"" if document is None else json.dumps(document).encode()
    with urllib.request.urlopen(urllib.request.Request(side.url(path), data, method="POST"), timeout=60) as answer:
        return answer.read()


def load(side, version):
    """Have the server load one version and serve it."""
    config = json.dumps({"version_policy": {"specific": {"versions": [version]}}})
    post(side, f"/v2/repository/models/{NAME}/load", {"parameters": {"config": config}})


def served(side):
    """The version that answers now."""
    body = {"inputs": np.zeros((1, 784)).tolist()}
    return int(json.loads(post(side, f"/models/{NAME}/predict", body))["version"])


def resident_bytes(side):
    """Resident memory of the server's process: all of it, and what is its own."""
    fields = dict(
        line.split(":", 1) for line in Path(f"/proc/{side.process.pid}/status").read_text().splitlines() if ":" in line
    )
    return {key: 1024 * int(fields[name].split()[0]) for key, name in (("all", "VmRSS"), ("anonymous", "RssAnon"))}


class Reloads:
    """Reloads at a steady pace beside the load; the versions change places each time."""

    def __init__(self, side, every_s):
        self.side, self.every_s = side, every_s
        self.took_s, self.wrong = [], []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()

    def _run(self):
        version = 1
        while not self._stop.wait(self.every_s):
            version = 3 - version
            began = time.perf_counter()
            load(self.side, version)
            self.took_s.append(time.perf_counter() - began)
            if served(self.side) != version:
                self.wrong.append(version)


def drive(side, body, core, rate, seconds):
    """One run of the load."""
    command = ["taskset", "-c", str(core), sys.executable, str(HERE / "serving" / "openloop.py")]
    arguments = [side.url(f"/models/{NAME}/predict"), str(body), str(rate), str(seconds)]
    done = subprocess.run([*command, *arguments], check=True, capture_output=True, text=True, timeout=seconds + 60)
    return json.loads(done.stdout)


def measure(side, arguments, folder):
    body = folder / "body"
    body.write_bytes(json.dumps({"inputs": np.random.default_rng(3).random((1, 784)).tolist()}).encode())
    runs = {"without": [], "with": []}
    took_s, wrong = [], []
    drive(side, body, arguments.client_core, arguments.rate, 2)  # warm
    for number in range(arguments.rounds):
        runs["without"].append(drive(side, body, arguments.client_core, arguments.rate, arguments.seconds))
        with Reloads(side, arguments.every_s) as reloads:
            runs["with"].append(drive(side, body, arguments.client_core, arguments.rate, arguments.seconds))
        took_s += reloads.took_s
        wrong += reloads.wrong
        print(f"round {number + 1} of {arguments.rounds} done", file=sys.stderr)
    return runs, took_s, wrong


def memory(side, count):
    """Resident memory after each fifty reloads."""
    found = {}
    for number in range(1, count + 1):
        load(side, 1 + number % 2)
        if number % 50 == 0:
            served(side)
            time.sleep(0.5)  # replaced models are released concurrently
            found[number] = resident_bytes(side)
    return found


def lost(runs):
    """Requests that were not answered with 200."""
    return sum(run["unanswered"] + sum(n for status, n in run["statuses"].items() if status != "200") for run in runs)


def run(arguments, folder, log):
    model_dir = folder / "models"
    source = max((arguments.model_dir / NAME).glob("[1-9]*"), key=lambda path: int(path.name))
    for version in ("1", "2"):
        shutil.copytree(source, model_dir / NAME / version)
    side = known.ours(model_dir)
    side.environment = {**side.environment, "PANTHER_MODEL_CONTROL": "explicit"}
    file = model_dir / NAME / "2" / "model.onnx"
    side.start(file, arguments.server_core, log)
    try:
        cells = [Cell("1 row", "json", 1, 4)]
        parity(side, file, cells)
        runs, took_s, wrong = measure(side, arguments, folder)
        resident = memory(side, arguments.reloads)
        parity(side, file, cells)
    finally:
        side.stop()
    p99 = {name: statistics.median(item["p99_ms"] for item in items) for name, items in runs.items()}
    p50 = {name: statistics.median(item["p50_ms"] for item in items) for name, items in runs.items()}
    first, last = min(resident), max(resident)
    growth = resident[last]["all"] / resident[first]["all"] - 1
    checks = [
        ("p99 with reloads over p99 without", p99["with"] / p99["without"], "<", 2),
        ("requests lost", lost(runs["without"] + runs["with"]), "<=", 0),
        ("reloads after which another version answered", len(wrong), "<=", 0),
        (f"growth of resident memory from reload {first} to {last}", growth, "<=", 0.1),
    ]
    return {
        "benchmark": "reload",
        **about(),
        "settings": {"server_cores": 1, "onnxruntime_threads": 1, "rounds": arguments.rounds,
                     "seconds": arguments.seconds, "rate_per_s": arguments.rate, "reload_every_s": arguments.every_s,
                     "model": source.relative_to(arguments.model_dir).as_posix(),
                     "model_bytes": (source / "model.onnx").stat().st_size},
        "p50_ms": p50,
        "p99_ms": p99,
        "reloads_under_load": len(took_s),
        "reload_median_ms": round(1e3 * statistics.median(took_s), 1),
        "reload_max_ms": round(1e3 * max(took_s), 1),
        "resident_bytes": resident,
        "must_reach": [
            {"what": what, "value": round(value, 3), "rule": f"{sign} {bound}",
             "reached": bool(value < bound if sign == "<" else value <= bound)}
            for what, value, sign, bound in checks
        ],
        "rounds": runs,
    }  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one short round, nothing written unless --output")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=12, help="of each run of the load")
    parser.add_argument("--rate", type=int, default=1000, help="requests per second")
    parser.add_argument("--every-s", type=float, default=1.0, help="seconds from one reload to the next")
    parser.add_argument("--reloads", type=int, default=500, help="reloads of the last part")
    parser.add_argument("--model-dir", type=lambda text: Path(text).resolve(), default=ROOT / "models")
    parser.add_argument("--server-core", type=int, default=0)
    parser.add_argument("--client-core", type=int, default=1)
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/reload.json")
    parser.add_argument("--strict", action="store_true", help="exit 1 where a figure that must be reached is missed")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rounds, arguments.seconds, arguments.reloads = 1, 4, 100
    elif arguments.output is None:
        arguments.output = HERE / "results" / "reload.json"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with (folder / "server.log").open("w") as log:
            report = run(arguments, folder, log)
    print_rules(report)
    print(f"p50, p99 in ms: {report['p50_ms']}, {report['p99_ms']}; a reload took {report['reload_median_ms']} ms")
    return conclude(report, arguments)


if __name__ == "__main__":
    sys.exit(main())
