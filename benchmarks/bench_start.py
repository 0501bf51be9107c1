"""Start to the first answer, and memory: the server, the same with all options on, and a naive FastAPI service.

All serve the shipped model on one core, and answer with onnxruntime's own numbers before anything counts. Each round
starts each of them once, in turn. Time is from the start of the process to its first prediction; memory is the resident
set of its process then, and after 2,000 requests of 64 clients.

    python benchmarks/bench_start.py            about three minutes
    python benchmarks/bench_start.py --quick    a smoke test, not a measurement
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
from bench_reload import resident_bytes
from bench_serving import CELLS, parity
from serving import sides as known
from serving.machine import about, conclude, print_rules

HERE = Path(__file__).parent
ROOT = HERE.parent
MIB = 2**20
KEY = "a-key-for-the-benchmark"
NO_TRACES = {
    "PANTHER_GRPC_PORT": "{grpc_port}",
    "PANTHER_MODEL_CONTROL": "watch",
    "PANTHER_PREDICT_KEYS": KEY,
    "PANTHER_PROTECT_METRICS": "true",
    "PANTHER_CORS_ORIGINS": "*",
    "PANTHER_LOG_FORMAT": "json",
    "PANTHER_ACCESS_LOG": "true",
}
ALL_ON = {
    **NO_TRACES,
    "PANTHER_TRACING": "otlp",
    "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9",  # nobody listens: spans wait and are dropped, as in an outage
}
CLIENTS, REQUESTS = 64, 2000


def with_key(encode):
    """An encoder whose requests carry the key."""

    def encoded(*values):
        headers, body = encode(*values)
        return {**headers, "Authorization": f"Bearer {KEY}"}, body

    return encoded


def sides(model_dir):
    """What is compared; each is ready when it has answered a prediction."""
    found = [known.uvicorn_side("naive def", "naive:app"), known.ours(model_dir)]
    for name, environment in (("ours, all options on but traces", NO_TRACES), ("ours, all options on", ALL_ON)):
        side = known.ours(model_dir)
        side.name, side.environment = name, environment
        side.make = {kind: (path, with_key(encode), decode) for kind, (path, encode, decode) in side.make.items()}
        found.append(side)
    for side in found:
        side.ready_path = None
    return found


def ask_often(side, requests):
    """Requests of many clients at once."""
    x = np.random.default_rng(5).random((1, 784), np.float32)
    with ThreadPoolExecutor(CLIENTS) as pool:
        for _ in pool.map(lambda _: side.ask("json", x), range(requests)):
            pass


def measure(side, arguments, log, *, check):
    """One start: seconds, and resident bytes before and after requests."""
    side.start(arguments.model, arguments.server_core, log)
    try:
        first = resident_bytes(side)["all"]
        if check:
            parity(side, arguments.model, CELLS)
        ask_often(side, arguments.requests)
        return {"start_s": side.ready_s, "resident": first, "resident_after": resident_bytes(side)["all"]}
    finally:
        side.stop()


def verdicts(median):
    ours, everything, naive = (median[name] for name in ("ours", "ours, all options on", "naive def"))
    found = [
        ("start to the first answer: times naive", ours["start_s"] / naive["start_s"], 2.0),
        ("the same, all options on", everything["start_s"] / naive["start_s"], 2.0),
        ("resident after the requests, all options on, MiB", everything["resident_after"] / MIB, 130.0),
    ]
    return [
        {"what": what, "value": round(value, 3), "rule": f"<= {limit:g}", "reached": value <= limit}
        for what, value, limit in found
    ]


def run(arguments, log):
    compared = sides(arguments.model_dir)
    runs = {side.name: [] for side in compared}
    for number in range(arguments.rounds):
        for side in compared:
            runs[side.name].append(measure(side, arguments, log, check=number == 0))
    median = {
        name: {key: round(statistics.median(run[key] for run in found), 3) for key in found[0]}
        for name, found in runs.items()
    }
    return {
        "benchmark": "start",
        **about(),
        "settings": {"server_cores": 1, "onnxruntime_threads": 1, "rounds": arguments.rounds, "clients": CLIENTS,
                     "requests": arguments.requests, "all_on": sorted(ALL_ON)},
        "median": median,
        "must_reach": verdicts(median),
        "rounds": runs,
    }  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round; nothing is written")
    parser.add_argument("--output", type=Path, help="JSON to write (default: benchmarks/results/start.json)")
    parser.add_argument("--strict", action="store_true", help="fail where a figure that must be reached is not")
    parser.add_argument("--model-dir", type=lambda text: Path(text).resolve(), default=ROOT / "models")
    parser.add_argument("--server-core", type=int, default=0)
    arguments = parser.parse_args()
    arguments.model = arguments.model_dir / "digits" / "1" / "model.onnx"
    arguments.rounds, arguments.requests = (1, 200) if arguments.quick else (10, REQUESTS)
    if not arguments.quick and arguments.output is None:
        arguments.output = HERE / "results" / "start.json"
    began = time.time()
    with tempfile.NamedTemporaryFile("w+", suffix=".log") as log:
        try:
            report = run(arguments, log)
        except (RuntimeError, OSError, AssertionError):
            log.flush()
            sys.stderr.write(Path(log.name).read_text()[-3000:])
            raise
    print(json.dumps(report["median"], indent=1))
    print_rules(report)
    print(f"took {time.time() - began:.0f} s", file=sys.stderr)
    return conclude(report, arguments)


if __name__ == "__main__":
    sys.exit(main())
