"""Scaling by threads, workers and replicas, measured on the services of docker-compose.yml.

Two models: the shipped one, whose runs take microseconds, and one of six layers of 2048, whose runs take milliseconds.
First every configuration's answers are compared with onnxruntime's own. Then

- one container with all cores: threads against workers, for one client and for many;
- replicas behind the gateway, each held to a part of a core, so that this machine is not what limits them;
- what the gateway costs a single client.

Needs a Docker engine, the image (docker compose build) and wrk. The load comes from the same machine.

The table of docs/scaling.md is written anew with the results.

    python benchmarks/bench_scaling.py            about two and a half minutes
    python benchmarks/bench_scaling.py --quick    a smoke test, not a measurement
"""

import argparse
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import urllib.request
from contextlib import contextmanager
from pathlib import Path

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
from bench_overload import costly_model
from bench_serving import ROOT, session
from serving.machine import about

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "scaling.json"
REPLICA_CPUS = 0.1
MODELS = ("digits", "costly")
MARKS = ("<!-- written by benchmarks/bench_scaling.py -->", "<!-- end -->")


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


@contextmanager
def services(folder, *arguments, **variables):
    """Services of docker-compose.yml; gives the addresses of the server and of the gateway."""
    ports = {"PANTHER_PUBLISHED_PORT": free_port(), "PANTHER_GATEWAY_PORT": free_port()}
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PANTHER_")}
    images = {name: os.environ[name] for name in ("PANTHER_IMAGE", "PANTHER_NGINX_IMAGE") if name in os.environ}
    environment |= images | {"PANTHER_MODELS": str(folder), "PANTHER_DEVICE": "cpu", "PANTHER_DEFAULT_MODEL": "digits"}
    environment |= {name: str(value) for name, value in {**ports, **variables}.items()}

    def compose(*words):
        command = ["docker", "compose", "-p", "panther-bench-scaling", "--profile", "scale", *words]
        done = subprocess.run(command, cwd=ROOT, env=environment, check=False, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr}")

    try:
        compose("up", "--detach", "--wait", "--no-build", *arguments)
        yield tuple(f"http://127.0.0.1:{port}" for port in ports.values())
    finally:
        compose("down", "--volumes", "--timeout", "5")


def parity(address, folder, count):
    """Raises where an answer is not the model's; enough of them that every worker and replica is met."""
    rng = np.random.default_rng(7)
    for model in MODELS:
        own = session(folder / model / "1" / "model.onnx")
        for x in rng.random((count, 2, 784), np.float32):
            body = json.dumps({"inputs": x.astype(float).tolist()}).encode()
            with urllib.request.urlopen(f"{address}/models/{model}/predict", body, timeout=30) as answer:
                logits = json.load(answer)["outputs"]["logits"]
            expected = own.run(None, {own.get_inputs()[0].name: x})[0]
            np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-3, err_msg=f"{address} {model}")


def drive(address, model, clients, arguments, body):
    """The median of some runs of wrk: requests per second and latencies in µs."""
    command = ["wrk", "-t1", f"-c{clients}", f"-d{arguments.seconds}s", "--timeout", "20s", "--latency"]
    environment = {**os.environ, "BODY": str(body), "HEADERS": "Content-Type: application/json"}
    runs = []
    for _ in range(arguments.rounds):
        out = subprocess.run(
            [*command, "-s", str(HERE / "serving" / "wrk.lua"), f"{address}/models/{model}/predict"],
            env=environment, check=True, capture_output=True, text=True, timeout=arguments.seconds + 60,
        ).stdout  # fmt: skip
        found = json.loads(out.split("RESULT ")[1])
        if found["bad_status"] or found["errors"]:
            raise RuntimeError(f"{address}, {model}, {clients} clients: {found}")
        rate = 1e6 * found["requests"] / found["duration_us"]
        runs.append({"rate": rate, "p50_us": found["p50_us"], "p99_us": found["p99_us"]})
    return {key: round(statistics.median(run[key] for run in runs), 1) for key in runs[0]}


def one_container(folder, arguments, body):
    """Threads against workers in one container that may use every core."""
    cores, found = os.cpu_count(), {}
    cells = {"1 thread": (1, 1), f"{cores} threads": (cores, 1), f"{cores} workers of 1 thread": (1, cores)}
    for name, (threads, workers) in cells.items():
        variables = {"PANTHER_NUM_THREADS": threads, "PANTHER_WORKERS": workers}
        with services(folder, "server", **variables) as (address, _):
            parity(address, folder, 4 * workers)
            found[name] = {
                f"{model}, {clients} clients": drive(address, model, clients, arguments, body)
                for model in MODELS
                for clients in (1, 16)
            }
        print(name, json.dumps(found[name]), flush=True)
    return found


def replicas(folder, arguments, body):
    """Replicas behind the gateway, each held to a part of a core."""
    found = {}
    for count in (1, 2, 3):
        variables = {"PANTHER_CPUS": REPLICA_CPUS, "PANTHER_NUM_THREADS": 1}
        with services(folder, "--scale", f"replica={count}", "gateway", **variables) as (_, address):
            parity(address, folder, 4 * count)
            found[str(count)] = {model: drive(address, model, 32, arguments, body) for model in MODELS}
        print(count, json.dumps(found[str(count)]), flush=True)
    for model in MODELS:
        for count in found:
            cell = found[count][model]
            cell["times_one"] = round(cell["rate"] / found["1"][model]["rate"], 2)
    return found


def gateway(folder, arguments, body):
    """The same server asked directly and through the gateway."""
    with services(folder, "--scale", "replica=1", "server", "gateway", PANTHER_NUM_THREADS=1) as addresses:
        for address in addresses:
            parity(address, folder, 4)
        names = ("directly", "through the gateway")
        found = {
            name: {
                f"digits, {clients} clients": drive(address, "digits", clients, arguments, body) for clients in (1, 16)
            }
            for name, address in zip(names, addresses, strict=True)
        }
    print(json.dumps(found), flush=True)
    return found


def table(result):
    """The results in Markdown."""

    def row(name, *cells):
        return (
            f"| {name} | "
            + " | ".join(f"{cell['rate']:,.0f}/s, {cell['p50_us'] / 1e3:.2f} ms" for cell in cells)
            + " |"
        )

    loads = [f"{model}, {clients} clients" for model in MODELS for clients in (1, 16)]
    lines = [
        "| one container | digits, 1 client | digits, 16 | costly, 1 client | costly, 16 |",
        "|---|---|---|---|---|",
    ]
    lines += [row(name, *(cells[load] for load in loads)) for name, cells in result["one_container"].items()]
    share = result["replica_cpus"]
    lines += ["", f"| replicas of {share} core behind nginx, 32 clients | digits | costly |", "|---|---|---|"]
    lines += [
        row(
            f"{count} ({cells['digits']['times_one']:.2f}x, {cells['costly']['times_one']:.2f}x)",
            cells["digits"],
            cells["costly"],
        )
        for count, cells in result["replicas"].items()
    ]
    lines += ["", "| one server of one thread, digits | 1 client | 16 clients |", "|---|---|---|"]
    lines += [row(name, *cells.values()) for name, cells in result["gateway"].items()]
    return "\n".join(lines)


def put_table(text, result):
    """The text of docs/scaling.md with the table of these results in it."""
    before, _, rest = text.partition(MARKS[0])
    return f"{before}{MARKS[0]}\n{table(result)}\n{MARKS[1]}{rest.partition(MARKS[1])[2]}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one short round; nothing written unless --output")
    parser.add_argument("--output", type=Path, help="where the JSON goes; benchmarks/results/scaling.json")
    arguments = parser.parse_args()
    arguments.seconds, arguments.rounds = (1, 1) if arguments.quick else (1, 3)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "models"
        shutil.copytree(ROOT / "models" / "digits", folder / "digits")
        costly_model(folder / "costly" / "1" / "model.onnx")
        for path in (Path(name), folder, *folder.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
        body = Path(name) / "body.json"
        row = np.random.default_rng(3).random((1, 784), np.float32)
        body.write_text(json.dumps({"inputs": row.astype(float).tolist()}))
        result = about() | {
            "seconds_a_round": arguments.seconds,
            "rounds": arguments.rounds,
            "replica_cpus": REPLICA_CPUS,
            "one_container": one_container(folder, arguments, body),
            "replicas": replicas(folder, arguments, body),
            "gateway": gateway(folder, arguments, body),
        }
    output = arguments.output or (None if arguments.quick else RESULTS)
    if output is not None:
        output.write_text(json.dumps(result, indent=1) + "\n")
        print(f"wrote {output}")
    if output == RESULTS:
        page = ROOT / "docs" / "scaling.md"
        page.write_text(put_table(page.read_text(), result))
        print(f"wrote the table of {page}")


if __name__ == "__main__":
    main()
