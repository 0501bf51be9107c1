"""Overload: the server and a naive one at three times the load that they can serve.

Both serve the same model, whose runs take milliseconds, each pinned to one core; the load comes from the other. First
the answers are compared with onnxruntime's own. Then the most that a side can do is measured with a steady number of
clients, and after that requests arrive at random at a multiple of that rate, answered or not, while a probe asks every
50 ms over a new connection, as an orchestrator does. The last part keeps the shipped model, whose runs are short, busy
with more and more clients.

    python benchmarks/bench_overload.py            about three minutes
    python benchmarks/bench_overload.py --quick    a smoke test, not a measurement
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
import onnx
from bench_serving import ROOT, Cell, drive, parity
from onnx import TensorProto, helper, numpy_helper
from serving import sides as known
from serving.machine import about

HERE = Path(__file__).parent
INPUTS, WIDTH, LAYERS, OUTPUTS = 784, 2048, 6, 10
MAX_QUEUE_MS = 500
PROBE = """
import http.client, json, sys, time
host, port, path, seconds = sys.argv[1:]
times, bad, until = [], 0, time.perf_counter() + float(seconds)
while time.perf_counter() < until:
    began = time.perf_counter()
    try:
        connection = http.client.HTTPConnection(host, int(port), timeout=30)
        connection.request("GET", path)
        bad += connection.getresponse().read() == b"" or 0
        connection.close()
    except OSError:
        bad += 1
    times.append(time.perf_counter() - began)
    time.sleep(max(0, 0.05 - times[-1]))
times.sort()
print(json.dumps({"asked": len(times), "failed": bad, "p50_ms": round(1e3 * times[len(times) // 2], 2),
                  "max_ms": round(1e3 * times[-1], 2)}))
"""


def costly_model(path):
    """A perceptron of six hidden layers of 2048, about a millisecond a row on one core."""
    rng = np.random.default_rng(0)
    widths = [INPUTS, *[WIDTH] * LAYERS, OUTPUTS]
    nodes, weights, x = [], [], "x"
    for layer, (wide, out) in enumerate(itertools.pairwise(widths)):
        weights.append(
            numpy_helper.from_array((rng.standard_normal((wide, out)) / np.sqrt(wide)).astype(np.float32), f"w{layer}")
        )
        y = "logits" if layer == LAYERS else f"y{layer}"
        nodes.append(helper.make_node("MatMul", [x, f"w{layer}"], [y]))
        if layer < LAYERS:
            nodes.append(helper.make_node("Relu", [y], [f"r{layer}"]))
            x = f"r{layer}"
    graph = helper.make_graph(
        nodes,
        "costly",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", INPUTS])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", OUTPUTS])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    path.parent.mkdir(parents=True)
    onnx.save(model, path)


def resident_mib(side):
    for line in Path(f"/proc/{side.process.pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    return 0.0


def overload(side, rate, seconds, core, folder, probe_path):
    """One side asked at ``rate`` requests per second, with a probe beside."""
    path, encode, _ = side.make["json"]
    _, body = encode(np.random.default_rng(3).random((1, INPUTS), np.float32), "float32")
    file = folder / "row.body"
    file.write_bytes(body)
    before = resident_mib(side)
    pinned = ["taskset", "-c", str(core), sys.executable]
    probe = subprocess.Popen(
        [*pinned, "-c", PROBE, "127.0.0.1", str(side.port), probe_path, str(seconds)],
        stdout=subprocess.PIPE,
        text=True,
    )
    command = [*pinned, str(HERE / "serving" / "openloop.py"), side.url(path), str(file), str(rate), str(seconds)]
    out = subprocess.run(command, check=True, capture_output=True, text=True, timeout=seconds + 60).stdout
    result = json.loads(out)
    result["probe"] = json.loads(probe.communicate()[0])
    result["resident_mib"] = {"before": round(before, 1), "after": round(resident_mib(side), 1)}
    return result


def measure(side, model, arguments, folder, log, probe_path):
    side.start(model, arguments.server_core, log)
    try:
        parity(side, model, [Cell("parity", "json", 1, 4)])
        cell = Cell("peak", "json", 1, 32, "float32")
        peaks = [drive(side, cell, arguments.client_core, arguments.seconds, folder)["rate"] for _ in range(3)]
        peak = sorted(peaks)[1]
        result = {"peak_per_s": round(peak, 1), "loads": {}}
        for times in (0.8, 3.0):
            found = overload(side, times * peak, arguments.seconds * 2, arguments.client_core, folder, probe_path)
            found["goodput_of_peak"] = round(found["goodput_per_s"] / peak, 3)
            result["loads"][f"{times}x"] = found
            print(f"{side.name}, {times}x: {json.dumps(found)}", flush=True)
        return result
    finally:
        side.stop()


def short_runs(arguments, folder, log):
    """The shipped model and more and more clients that each wait for their answer."""
    model = ROOT / "models" / "digits" / "1" / "model.onnx"
    side = known.ours(ROOT / "models")
    side.start(model, arguments.server_core, log)
    try:
        parity(side, model, [Cell("parity", "json", 1, 16)])
        found = {}
        for clients in (64, 192, 900):
            pinned = ["taskset", "-c", str(arguments.client_core), sys.executable]
            probe = subprocess.Popen(
                [*pinned, "-c", PROBE, "127.0.0.1", str(side.port), "/health/ready", str(arguments.seconds)],
                stdout=subprocess.PIPE,
                text=True,
            )
            cell = Cell(f"{clients} clients", "json", 1, clients)
            found[cell.name] = drive(side, cell, arguments.client_core, arguments.seconds, folder)
            found[cell.name]["probe"] = json.loads(probe.communicate()[0])
            found[cell.name]["resident_mib"] = round(resident_mib(side), 1)
            print(f"digits, {cell.name}: {json.dumps(found[cell.name])}", flush=True)
        return found
    finally:
        side.stop()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=6)
    parser.add_argument("--server-core", type=int, default=0)
    parser.add_argument("--client-core", type=int, default=1)
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/overload.json")
    parser.add_argument("--quick", action="store_true", help="one short round; nothing written unless --output")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.seconds = 1
    elif arguments.output is None:
        arguments.output = HERE / "results" / "overload.json"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = folder / "models" / "digits" / "1" / "model.onnx"
        costly_model(model)
        mine = known.ours(folder / "models")
        mine.command += ["--max-queue-ms", str(MAX_QUEUE_MS)]
        naive = known.uvicorn_side("naive def", "naive:app")
        with (folder / "log").open("w") as log:
            results = {
                "ours": measure(mine, model, arguments, folder, log, "/health/ready"),
                "naive def": measure(naive, model, arguments, folder, log, "/openapi.json"),
            }
            digits = short_runs(arguments, folder, log)
    three = results["ours"]["loads"]["3.0x"]
    verdicts = {
        "goodput at 3x, of the peak, at least 0.9": [three["goodput_of_peak"], three["goodput_of_peak"] >= 0.9],
        "slowest probe at 3x, ms, at most 100": [three["probe"]["max_ms"], three["probe"]["max_ms"] <= 100],
        "99th percentile at 3x, ms": [three["p99_ms"], None],
        "resident memory at 3x, MiB": [three["resident_mib"], None],
    }
    for rule, (figure, reached) in verdicts.items():
        print(f"{rule}: {figure} {'' if reached is None else 'reached' if reached else 'MISSED'}")
    if arguments.output is None:
        return
    arguments.output.write_text(
        json.dumps(
            {
                "benchmark": "overload",
                **about(),
                "settings": {"seconds": arguments.seconds, "max_queue_ms": MAX_QUEUE_MS, "server_cores": 1},
                "costly model": results,
                "shipped model": digits,
                "verdicts": verdicts,
            },
            indent=1,
        )
        + "\n"
    )


if __name__ == "__main__":
    main()
