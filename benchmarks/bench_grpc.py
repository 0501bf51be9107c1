"""Measures the server over gRPC beside the same server over HTTP, Triton over gRPC, and gRPC services that only echo.

Each server has one core, its clients the other. Before anything is timed the answers of all of them to the same rows
are compared with onnxruntime's. Over HTTP wrk asks, by JSON and by binary tensors of the same protocol; over gRPC
h2load does, by raw contents, on nghttp2 and on grpcio. All are timed in turn within each round. The echoes answer a
constant: what grpcio takes for a call, and what nghttp2 by ctypes takes inside the event loop. Triton is measured where
benchmarks/peers.sh installed it; wrk and h2load are Debian's (packages wrk and nghttp2-client, which brings
libnghttp2).

    python benchmarks/bench_grpc.py            about five minutes
    python benchmarks/bench_grpc.py --quick    a smoke test, not a measurement
"""

import argparse
import os
import re
import statistics
import struct
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
from bench_serving import Cell, drive, median, session
from serving import sides as known
from serving.machine import PACKAGES, about, conclude, print_rules

HERE = Path(__file__).parent
GOAL = 0.6
TIMES_TRITON = 1.5
CELLS = {"1 row, 1 client": (1, 1), "1 row, 64 clients": (1, 64), "32 rows, 8 clients": (32, 8)}
"""Rows and clients by name."""
JSON, BINARY, GRPC = "HTTP, JSON", "HTTP, binary tensors", "gRPC, raw contents"
FALLBACK, TRITON = "gRPC on grpcio", "Triton, gRPC, raw contents"
ECHOES = {
    "echo, grpc.aio": ("grpc_echo.py", "aio"),
    "echo, grpc with threads": ("grpc_echo.py", "threads"),
    "echo, nghttp2": ("nghttp2_echo.py",),
}
METHOD = "/inference.GRPCInferenceService/ModelInfer"


@dataclass(frozen=True)
class Load:
    """Settings of the clients.

    Attributes:
        core: Core of the clients.
        seconds: Duration of each run.
        folder: Folder for the messages.
    """

    core: int
    seconds: int
    folder: Path


def message(x):
    from tritonclient.grpc import service_pb2

    request = service_pb2.ModelInferRequest(model_name="digits", raw_input_contents=[x.tobytes()])
    request.inputs.add(name="x", datatype="FP32", shape=x.shape)
    return request.SerializeToString()


def parity(side, model):
    """Check that every side returns the model's outputs; raise an error otherwise."""
    import tritonclient.grpc

    runtime = session(model)
    name = runtime.get_inputs()[0].name
    rng = np.random.default_rng(7)
    with tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{side.grpc_port}") as client:
        for rows in sorted({rows for rows, _ in CELLS.values()}):
            for _ in range(16):
                x = rng.random((rows, 784), np.float32)
                tensor = tritonclient.grpc.InferInput("x", x.shape, "FP32")
                tensor.set_data_from_numpy(x)
                wanted = runtime.run(None, {name: x})[0]
                found = {kind: side.ask(kind, x) for kind in side.make}
                found["gRPC"] = client.infer("digits", [tensor]).as_numpy("logits")
                for way, answer in found.items():
                    np.testing.assert_allclose(answer, wanted, rtol=1e-3, atol=1e-4, err_msg=f"{side.name}, {way}")


def drive_grpc(side, rows, clients, load):
    """One run over gRPC, as ``bench_serving.drive`` does one over HTTP."""
    body, log = load.folder / "message", load.folder / "calls"
    content = message(np.random.default_rng(3).random((rows, 784), np.float32))
    body.write_bytes(b"\0" + struct.pack(">I", len(content)) + content)
    log.unlink(missing_ok=True)
    command = ["taskset", "-c", str(load.core), "h2load", "-c", str(clients), "-m", "1", "-D", str(load.seconds)]
    command += ["-d", str(body), "--log-file", str(log), "-H", "content-type: application/grpc", "-H", "te: trailers"]
    for _ in range(5):  # h2load's timer sometimes ends before it has connected
        before = side.cpu_s()
        out = subprocess.run(
            [*command, f"http://127.0.0.1:{side.grpc_port}{METHOD}"],
            check=True, capture_output=True, text=True, timeout=load.seconds + 60,
        ).stdout  # fmt: skip
        cpu_s = side.cpu_s() - before
        if ", 0 started" not in out:
            break
    done, failed, errored = (int(re.search(rf"(\d+) {word}", out)[1]) for word in ("succeeded", "failed", "errored"))
    # A failed call ends without a message, and h2load checks only the HTTP status.
    answer_bytes = 4 * 10 * (rows if side.check else 1)
    if not done or failed or errored or int(re.search(r"\((\d+)\) data", out)[1]) < done * answer_bytes:
        raise RuntimeError(f"calls to {side.name} over gRPC failed: {out}")
    times_us = [int(line.split("\t")[2]) for line in log.read_text().splitlines()]
    cuts = statistics.quantiles(times_us, n=100)
    return {
        "rate": done / load.seconds,
        "p50_us": cuts[49],
        "p99_us": cuts[98],
        "cpu_us": 1e6 * cpu_s / max(1, done),
    }


def measure(side, others, arguments, load):
    """The runs of each way of asking and each cell."""
    runs = {way: {cell: [] for cell in CELLS} for way in (JSON, BINARY, GRPC, *others)}
    for _ in range(arguments.rounds):
        for name, (rows, clients) in CELLS.items():
            for way, kind in ((JSON, "json"), (BINARY, "binary")):
                cell = Cell(f"{way}, {name}", kind, rows, clients)
                runs[way][name].append(drive(side, cell, load.core, load.seconds, load.folder))
            for way, asked in {GRPC: side, **others}.items():
                runs[way][name].append(drive_grpc(asked, rows, clients, load))
    return runs


def verdicts(table):
    key = "1 row, 64 clients"
    shares = [(f"{key}: share of the rate over HTTP, JSON", table[GRPC][key]["rate"] / table[JSON][key]["rate"], GOAL)]
    if TRITON in table:
        shares += [
            (f"{cell}: times Triton over gRPC", table[GRPC][cell]["rate"] / table[TRITON][cell]["rate"], TIMES_TRITON)
            for cell in CELLS
        ]
    return [
        {"what": what, "value": round(value, 3), "rule": f">= {bound}", "reached": value >= bound}
        for what, value, bound in shares
    ]


def run(arguments, folder, log):
    side, fallback, triton = known.ours(arguments.model_dir), known.ours(arguments.model_dir), known.peer("triton")
    side.command += ["--grpc-port", "{grpc_port}", "--grpc-transport", "nghttp2"]
    fallback.command += ["--grpc-port", "{grpc_port}", "--grpc-transport", "grpcio"]
    others = {FALLBACK: fallback} | ({} if triton is None else {TRITON: triton})
    others |= {name: known.echo(name, *command) for name, command in ECHOES.items()}
    try:
        for each in (side, *others.values()):
            each.start(arguments.model, arguments.server_core, log)
            if each.check:
                parity(each, arguments.model)
        runs = measure(side, others, arguments, Load(arguments.client_core, arguments.seconds, folder))
    finally:
        for each in (side, *others.values()):
            each.stop()
    table = {name: {key: median(items) for key, items in row.items()} for name, row in runs.items()}
    return {
        "benchmark": "grpc",
        **about((*PACKAGES, "grpcio", "ngh2", "protobuf")),
        "settings": {
            "server_cores": 1,
            "onnxruntime_threads": 1,
            "rounds": arguments.rounds,
            "seconds": arguments.seconds,
        },
        "median": table,
        "must_reach": verdicts(table),
        "left_out": {} if triton is not None else {"triton": "not installed: benchmarks/peers.sh installs it"},
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
            print(f"{name:28}{key:>20}: {found['rate']:>8,.0f}/s, p50 {found['p50_us']:,.0f} µs, "
                  f"p99 {found['p99_us']:,.0f} µs, {found['cpu_us']:.0f} µs of processor time")  # fmt: skip
    print_rules(report)
    return conclude(report, arguments)


if __name__ == "__main__":
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    sys.exit(main())
