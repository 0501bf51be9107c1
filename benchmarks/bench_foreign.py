"""Model files of other tools, served together: whether batching changes an answer, and the cost of the proof at load.

One server process on one core serves files of skl2onnx, onnxmltools, CatBoost, PyTorch's two exporters, transformers,
onnxruntime's quantization, magika, rapidocr and silero-vad. Each model is loaded with and without batching, in turn.
Then clients on the other core send requests of 1 to 8 rows, half of them as JSON and half as binary tensors: to each
model by itself, and to all at once. Every answer is compared with the one that onnxruntime gives to that request alone.
Then batching is forced on the model whose rows mix, to show that the comparison would find a wrong answer. Last, a
model of 2.4 GB is made, loaded by a server of its own without a setting, asked, and deleted.

    python -m pip install --no-deps -r benchmarks/foreign.txt
    python benchmarks/bench_foreign.py            about five minutes
    python benchmarks/bench_foreign.py --quick    a smoke test, not a measurement
"""

import argparse
import http.client
import json
import os
import random
import statistics
import sys
import tempfile
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
from serving import large, sides
from serving.foreign import MODELS
from serving.foreign_requests import (
    ATOL_OF_LARGEST,
    JSON,
    RTOL,
    Request,
    alone,
    as_binary,
    as_json,
    error_of,
    open_alone,
    read_answer,
)
from serving.machine import PACKAGES, about, conclude, print_rules

from app.runtime.independence import prove

HERE = Path(__file__).parent
TOOLS = ("catboost", "lightgbm", "magika", "onnxmltools", "rapidocr-onnxruntime", "scikit-learn", "silero-vad",
         "skl2onnx", "torch", "transformers", "xgboost")  # fmt: skip


def post(side, path, body=b"{}"):
    request = urllib.request.Request(side.url(path), body, JSON, method="POST")
    with urllib.request.urlopen(request, timeout=120) as answer:
        return answer.read()


def stats(side, name=None):
    with urllib.request.urlopen(side.url(f"/models/{name}/stats" if name else "/stats"), timeout=60) as answer:
        return json.load(answer)


def reports(side):
    return {report["name"]: report for report in stats(side)["models"]}


def load(side, folder, batching):
    """Load a model again, with batching as given; returns the milliseconds that the server says it took."""
    settings = folder / "panther.toml"
    settings.write_text(f'batching = "{batching}"\n')
    post(side, f"/v2/repository/models/{folder.name}/load")
    report = reports(side)[folder.name]
    if report["state"] != "READY":
        raise RuntimeError(f"{folder.name} is not loaded: {report['reason']}")
    return 1e3 * report["runtime"]["load_duration_s"]


def proof_ms(path):
    began = time.perf_counter()
    prove(path)
    return 1e3 * (time.perf_counter() - began)


def loads(side, root, names, rounds):
    """Median milliseconds of a load with batching off, of one with it, and of the proof by itself."""
    found = {}
    for name in names:
        folder = root / name
        taken = {"off": [], "auto": [], "proof": []}
        for _ in range(rounds):
            for batching in ("off", "auto"):
                taken[batching].append(load(side, folder, batching))
            taken["proof"].append(proof_ms(folder / "1" / "model.onnx"))
        found[name] = {key: round(statistics.median(values), 1) for key, values in taken.items()}
    return found


def send(side, requests, clients):
    """Send requests over so many connections; returns the seconds it took."""

    def client(part):
        connection = http.client.HTTPConnection("127.0.0.1", side.port, timeout=120)
        for request in part:
            connection.request("POST", request.path, request.body, request.headers)
            answer = connection.getresponse()
            request.status, request.answer = answer.status, (answer.headers, answer.read())
        connection.close()

    began = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(client, [requests[start::clients] for start in range(clients)]))
    return time.perf_counter() - began


def make_requests(model, session, count, seed):
    rng = np.random.default_rng(seed)
    found = []
    for number in range(count):
        feeds = model.feeds(rng, int(rng.integers(1, 9)))
        encode = as_binary if number % 2 else as_json
        found.append(Request(model.name, *encode(model.name, feeds), alone(session, feeds)))
    return found


def judge(requests):
    """Wrong answers, each in a sentence, and the largest error of the others."""
    wrong, largest = [], 0.0
    for number, request in enumerate(requests):
        headers, body = request.answer
        error = error_of(read_answer(headers, body), request.expected) if request.status == 200 else None
        if error is None:
            said = f": {body[:200]!r}" if request.status != 200 else ""
            wrong.append(f"request {number} of {request.model}, {request.path}: status {request.status}{said}")
        else:
            largest = max(largest, error)
        request.answer = ()
    return wrong, largest


def shared(before, after):
    """Requests that joined a run that another one had begun: requests less runs."""
    counted = {key: after["live"][key] - before["live"][key] for key in ("requests", "executions")}
    return counted["requests"] - counted["executions"]


def pinned(core, action, *arguments):
    """Run something on one core of this process, new threads included."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        return action(*arguments)
    finally:
        os.sched_setaffinity(0, cores)


def measure(side, root, models, arguments):
    load_ms = loads(side, root, [model.name for model in models], arguments.loads)
    rows, everything, wrong = {}, [], []
    for seed, model in enumerate(models):
        session = open_alone(root / model.name / "1" / "model.onnx")
        count = arguments.heavy_requests if model.heavy else arguments.requests
        requests = make_requests(model, session, count, seed)
        by_itself, together = requests[: 3 * count // 4], requests[3 * count // 4 :]
        everything += together
        before = reports(side)[model.name]
        seconds = pinned(arguments.client_core, send, side, by_itself, arguments.clients)
        after = reports(side)[model.name]
        found_wrong, error = judge(by_itself)
        wrong += found_wrong
        runtime = after["runtime"]
        rows[model.name] = {
            "tool": model.tool,
            "file_bytes": after["bytes"]["file_bytes"],
            "batched": runtime["batched"],
            "expected_batched": model.independent,
            **{key: runtime["batching"][key] for key in ("decided_by", "verdict", "reason", "node", "op_type")},
            "requests": len(by_itself),
            "wrong": len(found_wrong),
            "largest_relative_error": error,
            "requests_per_s": round(len(by_itself) / seconds, 1),
            "joined_a_run": shared(before, after),
            "load_ms": load_ms[model.name],
        }
        print(f"{model.name}: {len(found_wrong)} wrong of {len(by_itself)}, {rows[model.name]['requests_per_s']}/s, "
              f"{'batched' if runtime['batched'] else 'not batched'}", file=sys.stderr)  # fmt: skip
    random.Random(0).shuffle(everything)
    before = reports(side)
    seconds = pinned(arguments.client_core, send, side, everything, arguments.clients)
    after = reports(side)
    found_wrong, error = judge(everything)
    mixed = {
        "requests": len(everything),
        "wrong": len(found_wrong),
        "largest_relative_error": error,
        "requests_per_s": round(len(everything) / seconds, 1),
        "joined_a_run": sum(shared(before[name], after[name]) for name in rows),
    }
    return rows, mixed, wrong + found_wrong, after


def control(side, root, models, arguments):
    """Wrong answers where batching is forced on models whose rows mix: that the comparison would find them."""
    found = 0
    for model in models:
        if not model.independent:
            load(side, root / model.name, "on")
            session = open_alone(root / model.name / "1" / "model.onnx")
            requests = make_requests(model, session, arguments.requests, len(models))
            pinned(arguments.client_core, send, side, requests, arguments.clients)
            found += len(judge(requests)[0])
    return found


def tool_versions():
    found = {}
    for name in TOOLS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def run(arguments, root, log):
    left_out = {model.name: f"{', '.join(missing)} not installed" for model in MODELS if (missing := model.missing())}
    models = [model for model in MODELS if model.name not in left_out and model.name in (arguments.models or known())]
    for model in models:
        folder = root / model.name / "1"
        folder.mkdir(parents=True)
        model.make(folder / "model.onnx")
    side = sides.ours(root)
    side.environment = {**side.environment, "PANTHER_MODEL_CONTROL": "explicit"}
    side.start(root, arguments.server_core, log)
    try:
        rows, mixed, wrong, after = measure(side, root, models, arguments)
        forced = control(side, root, models, arguments)
    finally:
        side.stop()
    big, why = None, "not part of this run"
    if arguments.large_gb and large.available_bytes() < 4e9 * arguments.large_gb:
        why = f"less than {4 * arguments.large_gb:g} GB of memory are available"
    elif arguments.large_gb:
        with tempfile.TemporaryDirectory() as name:
            big = large.measure(Path(name), arguments.large_gb, arguments.server_core, log)
    if big is None:
        left_out["large"] = why
    sent = mixed["requests"] + sum(row["requests"] for row in rows.values())
    not_batched = [name for name, row in rows.items() if row["batched"] != row["expected_batched"]]
    joined = mixed["joined_a_run"] + sum(row["joined_a_run"] for row in rows.values())
    ended = sum(report["runtime"]["batching"]["decided_by"] == "run" for report in after.values())
    checks = [
        ("requests sent", sent, ">=", 0 if arguments.quick else 5000),
        ("models", len(rows), ">=", 10),
        ("wrong answers", len(wrong), "<=", 0),
        ("models batched with rows that mix, or not batched with independent rows", len(not_batched), "<=", 0),
        ("models whose batching a run ended", ended, "<=", 0),
        ("requests that joined another's run", joined, ">=", 1),
        ("wrong answers where batching is forced on rows that mix", forced, ">=", 1),
    ]
    return {
        "benchmark": "foreign",
        **about((*PACKAGES, *tool_versions())),
        "settings": {"server_cores": 1, "onnxruntime_threads": 1, "clients": arguments.clients, "rows": "1 to 8",
                     "rtol": RTOL, "atol_of_largest": ATOL_OF_LARGEST, "loads": arguments.loads},
        "models": rows,
        "together": mixed,
        "large": big,
        "requests": sent,
        "joined_a_run": joined,
        "wrong_where_forced": forced,
        "wrong": wrong[:20],
        "not_as_expected": not_batched,
        "left_out": left_out,
        "must_reach": [
            {"what": what, "value": value, "rule": f"{sign} {bound}",
             "reached": bool(value >= bound if sign == ">=" else value <= bound)}
            for what, value, sign, bound in checks
        ],
    }  # fmt: skip


def known():
    return [model.name for model in MODELS]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few requests, nothing written unless --output")
    parser.add_argument("--models", nargs="*", choices=known(), help="default: all")
    parser.add_argument("--requests", type=int, default=328, help="to each model")
    parser.add_argument("--heavy-requests", type=int, default=104, help="to each model whose runs take long")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--loads", type=int, default=3, help="of each model with and without batching")
    parser.add_argument("--large-gb", type=float, default=2.4, help="size of the large model; 0 leaves it out")
    parser.add_argument("--server-core", type=int, default=0)
    parser.add_argument("--client-core", type=int, default=1)
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/foreign.json")
    parser.add_argument("--strict", action="store_true", help="exit 1 where a figure that must be reached is missed")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.requests, arguments.heavy_requests, arguments.loads, arguments.large_gb = 40, 8, 1, 0
    elif arguments.output is None and not arguments.models:
        arguments.output = HERE / "results" / "foreign.json"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "models").mkdir()
        with (folder / "server.log").open("w") as log:
            report = run(arguments, folder / "models", log)
    print_rules(report)
    for line in report["wrong"]:
        print(line)
    for name, why in report["left_out"].items():
        print(f"left out: {name}: {why}")
    print(f"all models at once: {report['together']['requests_per_s']} requests/s")
    return conclude(report, arguments)


if __name__ == "__main__":
    sys.exit(main())
