"""Measures the server over gRPC beside the same server over HTTP: one row, from 1 and from 64 clients.

One server process on one core, its clients on the other. Before anything is timed the answers of both doors to the same
rows are compared with each other and with onnxruntime's. Over HTTP wrk asks, by JSON and by binary tensors of the same
protocol; over gRPC benchmarks/serving/grpc_load.py does, by raw contents. All are timed in turn within each round.

    python benchmarks/bench_grpc.py            about a minute
    python benchmarks/bench_grpc.py --quick    a smoke test, not a measurement
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
from bench_serving import Cell, drive, median, server_cpu_s, session
from serving import sides as known
from serving.machine import about, conclude, print_rules

HERE = Path(__file__).parent
CLIENTS = (1, 64)
GOAL = 0.6
JSON, BINARY, GRPC = "HTTP, JSON", "HTTP, binary tensors", "gRPC, raw contents"


@dataclass(frozen=True)
class Load:
    """Who asks, and from where.

    Attributes:
        core: of the clients.
        seconds: of each run.
        folder: for what is sent.
    """

    core: int
    seconds: int
    folder: Path


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


def message(x):
    from tritonclient.grpc import service_pb2

    request = service_pb2.ModelInferRequest(model_name="digits", raw_input_contents=[x.tobytes()])
    request.inputs.add(name="x", datatype="FP32", shape=x.shape)
    return request.SerializeToString()


def parity(side, address, model):
    """The answers of both doors are the model's; raises where one is not."""
    import tritonclient.grpc

    runtime = session(model)
    name = runtime.get_inputs()[0].name
    rng = np.random.default_rng(7)
    with tritonclient.grpc.InferenceServerClient(address) as client:
        for _ in range(16):
            x = rng.random((1, 784), np.float32)
            tensor = tritonclient.grpc.InferInput("x", [1, 784], "FP32")
            tensor.set_data_from_numpy(x)
            wanted = runtime.run(None, {name: x})[0]
            np.testing.assert_allclose(
                client.infer("digits", [tensor]).as_numpy("logits"), wanted, rtol=1e-3, atol=1e-4
            )
            for kind in ("json", "binary"):
                np.testing.assert_allclose(side.ask(kind, x), wanted, rtol=1e-3, atol=1e-4)


def drive_grpc(side, port, clients, load):
    """One run over gRPC, as ``bench_serving.drive`` does one over HTTP."""
    file = load.folder / "message"
    file.write_bytes(message(np.random.default_rng(3).random((1, 784), np.float32)))
    command = ["taskset", "-c", str(load.core), sys.executable, str(HERE / "serving" / "grpc_load.py")]
    before = server_cpu_s(side)
    out = subprocess.run(
        [*command, str(port), str(file), str(clients), str(load.seconds)],
        check=True, capture_output=True, text=True, timeout=load.seconds + 60,
    ).stdout  # fmt: skip
    result = json.loads(out.split("RESULT ")[1])
    if result["bad_status"]:
        raise RuntimeError(f"{result['bad_status']} calls of {result['requests']} failed")
    return {
        "rate": 1e6 * result["requests"] / result["duration_us"],
        "p50_us": result["p50_us"],
        "p99_us": result["p99_us"],
        "cpu_us": 1e6 * (server_cpu_s(side) - before) / max(1, result["requests"]),
    }


def run(arguments, folder, log):
    port = free_port()
    side = known.ours(arguments.model_dir)
    side.command += ["--grpc-port", str(port)]
    load = Load(arguments.client_core, arguments.seconds, folder)
    runs = {name: {f"{clients} clients": [] for clients in CLIENTS} for name in (JSON, BINARY, GRPC)}
    side.start(arguments.model, arguments.server_core, log)
    try:
        parity(side, f"127.0.0.1:{port}", arguments.model)
        for _ in range(arguments.rounds):
            for clients in CLIENTS:
                key = f"{clients} clients"
                for name, kind in ((JSON, "json"), (BINARY, "binary")):
                    cell = Cell(f"{name}, {clients}", kind, 1, clients)
                    runs[name][key].append(drive(side, cell, load.core, load.seconds, folder))
                runs[GRPC][key].append(drive_grpc(side, port, clients, load))
    finally:
        side.stop()
    table = {name: {key: median(items) for key, items in row.items()} for name, row in runs.items()}
    key = f"{CLIENTS[-1]} clients"
    share = table[GRPC][key]["rate"] / table[JSON][key]["rate"]
    return {
        "benchmark": "grpc",
        **about(),
        "settings": {
            "server_cores": 1,
            "onnxruntime_threads": 1,
            "rounds": arguments.rounds,
            "seconds": arguments.seconds,
        },
        "median": table,
        "must_reach": [
            {"what": f"{key}: share of the rate over HTTP, JSON", "value": round(share, 3), "rule": f">= {GOAL}",
             "reached": share >= GOAL}
        ],
        "rounds": runs,
    }  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one short round, nothing written unless --output")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=3, help="of each run")
    parser.add_argument("--model-dir", type=lambda text: Path(text).resolve(), default=HERE.parent / "models")
    parser.add_argument("--server-core", type=int, default=0)
    parser.add_argument("--client-core", type=int, default=1)
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/grpc.json")
    parser.add_argument("--strict", action="store_true", help="exit 1 where the goal is missed")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rounds, arguments.seconds = 1, 1
    elif arguments.output is None:
        arguments.output = HERE / "results" / "grpc.json"
    versions = sorted((arguments.model_dir / "digits").glob("[1-9]*"), key=lambda path: int(path.name))
    arguments.model = versions[-1] / "model.onnx"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with (folder / "servers.log").open("w") as log:
            report = run(arguments, folder, log)
    for name, row in report["median"].items():
        for key, found in row.items():
            print(f"{name:22}{key:>12}: {found['rate']:>8,.0f}/s, p50 {found['p50_us']:,.0f} µs, "
                  f"p99 {found['p99_us']:,.0f} µs, {found['cpu_us']:.0f} µs of processor time")  # fmt: skip
    print_rules(report)
    return conclude(report, arguments)


if __name__ == "__main__":
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    sys.exit(main())
