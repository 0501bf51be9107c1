"""Measures the server against a naive one, two floors, and the peers that benchmarks/peers.sh installed.

The floors are a bare uvicorn that answers a constant, and a composite that answers: bare uvicorn, simdjson,
`session.run` and encoding, without all else.

All sides serve the same model file. Each is pinned to one core and driven by wrk (Debian's) from the other: ours, the
naive ones, the floors and Triton in turn within each round, then each other peer by itself; medians are over the
rounds. Before anything is timed, every side's answers to different requests are compared with onnxruntime's own; a side
that disagrees is not measured.

    python benchmarks/bench_serving.py                            about ten minutes with all peers
    python benchmarks/bench_serving.py --only triton,composite    about four: ours beside those named
    python benchmarks/bench_serving.py --quick                    about one minute: a smoke test, not a measurement
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
import onnxruntime as ort
from serving import sides as known
from serving.machine import about, conclude, print_rules

HERE = Path(__file__).parent
ROOT = HERE.parent
PEERS = ("triton", "triton-500-us", "mlserver", "litserve", "bentoml", "rayserve")
APART = PEERS[2:]
"""Those that take time of the core even when nobody asks."""


class Cell:
    """One kind of load."""

    def __init__(self, name, kind, rows, clients, text="float64"):
        self.name, self.kind, self.rows, self.clients, self.text = name, kind, rows, clients, text


CELLS = [
    Cell("1 row JSON, 1 client", "json", 1, 1),
    Cell("1 row JSON, 64 clients", "json", 1, 64),
    Cell("32 rows JSON, 8 clients", "json", 32, 8),
    Cell("32 rows JSON shortest, 8 clients", "json", 32, 8, "float32"),
    Cell("32 rows binary, 8 clients", "binary", 32, 8),
]


def session(model):
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])


def raw_run(model, rows, core, seconds):
    """Runs per second and the median run in µs of onnxruntime alone, in a process on the servers' core."""
    program = f"""
import json, sys, time
sys.path.insert(0, {str(HERE)!r})
import numpy as np
from bench_serving import session
s = session({str(model)!r})
x = np.random.default_rng(0).random(({rows}, 784), np.float32)
name = s.get_inputs()[0].name
for _ in range(50): s.run(None, {{name: x}})
times, end = [], time.perf_counter() + {seconds}
while time.perf_counter() < end:
    a = time.perf_counter(); s.run(None, {{name: x}}); times.append(time.perf_counter() - a)
print(json.dumps([len(times) / sum(times), 1e6 * float(np.median(times))]))
"""
    command = ["taskset", "-c", str(core), sys.executable, "-c", program]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def parity(side, model, cells):
    """Every answer of a warm-up pass, also of many clients at once, is the model's; raises where one is not."""
    s = session(model)
    name = s.get_inputs()[0].name
    rng = np.random.default_rng(7)
    for kind, rows, clients in sorted(
        {(cell.kind, cell.rows, cell.clients) for cell in cells if cell.kind in side.make}
    ):
        inputs = [rng.random((rows, 784), np.float32) for _ in range(max(16, 2 * clients))]
        with ThreadPoolExecutor(clients) as pool:
            answers = list(pool.map(lambda x, kind=kind: side.ask(kind, x), inputs))
        for x, answer in zip(inputs, answers, strict=True):
            np.testing.assert_allclose(answer, s.run(None, {name: x})[0], rtol=1e-3, atol=1e-4, err_msg=side.name)


def drive(side, cell, core, seconds, folder, cpu_s=known.Side.cpu_s):
    """One run of wrk; ``cpu_s`` gives the processor seconds of a side."""
    path, encode, _ = side.make[cell.kind]
    x = np.random.default_rng(3).random((cell.rows, 784), np.float32)
    headers, body = encode(x, cell.text) if cell.kind == "json" else encode(x)
    file = folder / f"{abs(hash((side.name, cell.name)))}.body"
    file.write_bytes(body)
    environment = {**os.environ, "BODY": str(file), "HEADERS": "\n".join(f"{k}: {v}" for k, v in headers.items())}
    command = [
        "taskset",
        "-c",
        str(core),
        "wrk",
        "-t1",
        f"-c{cell.clients}",
        f"-d{seconds}s",
        "--timeout",
        "10s",
        "--latency",
    ]
    before = cpu_s(side)
    out = subprocess.run(
        [*command, "-s", str(HERE / "serving" / "wrk.lua"), side.url(path)],
        env=environment, check=True, capture_output=True, text=True, timeout=seconds + 30,
    ).stdout  # fmt: skip
    result = json.loads(out.split("RESULT ")[1])
    if result["bad_status"] or result["errors"]:
        raise RuntimeError(f"{side.name}, {cell.name}: {result}")
    rate = 1e6 * result["requests"] / result["duration_us"]
    cpu_us = 1e6 * (cpu_s(side) - before) / max(1, result["requests"])
    return {"rate": rate, "p50_us": result["p50_us"], "p99_us": result["p99_us"], "cpu_us": cpu_us}


def median(runs):
    return {key: round(statistics.median(run[key] for run in runs), 1) for key in runs[0]}


def verdicts(table, raw, one_run_us, start_s):
    """The figures that must be reached, as far as their sides were measured."""
    mine = table["ours"]
    c1, c64, j32, _, b32 = (cell.name for cell in CELLS)

    def times(side, cell):
        return mine[cell]["rate"] / table[side][cell]["rate"]

    checks = []
    if "naive def" in table:
        wanted = ((c1, 2.8), (c64, 9), (j32, 8))
        checks += [(f"{cell}: times naive", times("naive def", cell), ">=", bound) for cell, bound in wanted]
    checks += [(f"{b32}: share of raw session.run", mine[b32]["rate"] / raw, ">=", 0.82)]
    if "bare uvicorn" in table:
        p50_over = mine[c1]["p50_us"] - table["bare uvicorn"][c1]["p50_us"] - one_run_us
        checks += [(f"{c1}: p50 over bare uvicorn + session.run, µs", p50_over, "<=", 100)]
    checks += [
        (f"{c64}: p99 / p50", mine[c64]["p99_us"] / mine[c64]["p50_us"], "<=", 2),
        ("start to ready, s", start_s, "<=", 1.0),
    ]
    if "composite" in table:
        checks += [(f"{cell}: share of the composite", times("composite", cell), ">=", 0.85) for cell in mine]
    if tritons := [side for side in table if side in known.TRITON]:
        checks += [(f"{cell}: times Triton", min(times(side, cell) for side in tritons), ">=", 1.5) for cell in mine]
    return [
        {"what": what, "value": round(value, 3), "rule": f"{sign} {bound}",
         "reached": bool(value >= bound if sign == ">=" else value <= bound)}
        for what, value, sign, bound in checks
    ]  # fmt: skip


def start_times(model, model_dir, core, log, count):
    """Seconds from the start of the process to ready, several times."""
    times = []
    for _ in range(count):
        side = known.ours(model_dir)
        side.start(model, core, log)
        side.stop()
        times.append(side.ready_s)
    return times


def measure(sides, cells, arguments, folder, *, with_raw=True):
    runs = {side.name: {cell.name: [] for cell in cells if cell.kind in side.make} for side in sides}
    raw, one = [], []
    for number in range(arguments.rounds):
        if with_raw:
            raw.append(raw_run(arguments.model, 32, arguments.server_core, arguments.seconds)[0])
            one.append(raw_run(arguments.model, 1, arguments.server_core, 1)[1])
        for cell in cells:
            for side in sides:
                if cell.kind in side.make:
                    runs[side.name][cell.name].append(
                        drive(side, cell, arguments.client_core, arguments.seconds, folder)
                    )
        print(f"round {number + 1} of {arguments.rounds} done", file=sys.stderr)
    return runs, raw, one


def two_workers(arguments, cells, log, folder):
    """Ours on both cores, wrk beside it: what a user of a small machine gets."""
    side = known.ours(arguments.model_dir, workers=2)
    side.start(arguments.model, f"{arguments.server_core},{arguments.client_core}", log)
    try:
        time.sleep(1)
        parity(side, arguments.model, cells)
        chosen = [cell for cell in cells if cell.clients > 1]
        runs = {cell.name: [] for cell in chosen}
        for _ in range(arguments.rounds):
            for cell in chosen:
                runs[cell.name].append(drive(side, cell, arguments.client_core, arguments.seconds, folder))
        return {name: median(item) for name, item in runs.items()}
    finally:
        side.stop()


def print_table(table, cells, raw):
    names = [cell.name for cell in cells]
    width = max(map(len, table)) + 2
    print("requests per second (median of the rounds)")
    print(" " * width + " | ".join(names))
    for side, row in table.items():
        shown = [f"{row[name]['rate']:,.0f}" if name in row else "-" for name in names]
        print(side.ljust(width) + " | ".join(text.rjust(len(name)) for text, name in zip(shown, names, strict=True)))
    print("raw session.run, 32 rows".ljust(width) + f"{raw:,.0f}")


def chosen_sides(arguments, parser):
    """The sides to measure, and those that are left out with the reason."""
    sides = [
        known.ours(arguments.model_dir),
        known.uvicorn_side("naive def", "naive:app"),
        known.uvicorn_side("naive async def", "naive:app", {"NAIVE_HANDLER": "async"}),
        known.uvicorn_side("bare uvicorn", "bare:app", check=False, binary=True),
        known.uvicorn_side("composite", "composite:app", binary=True),
    ]
    peers = [] if arguments.peers == "none" else arguments.peers.split(",")
    if arguments.only is not None:
        asked = arguments.only.split(",")
        by_name = {side.name: side for side in sides}
        peers = [name for name in asked if name not in by_name]
        sides = [side for name, side in by_name.items() if name == "ours" or name in asked]
    if unknown := [name for name in peers if name not in (*PEERS, *known.TRITON)]:
        parser.error(f"there is no side {unknown[0]!r}")
    found = {name: known.peer(name) for name in peers}
    left_out = {name: "not installed: benchmarks/peers.sh installs it" for name, side in found.items() if side is None}
    return [*sides, *(side for side in found.values() if side is not None)], left_out


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--quick", action="store_true", help="one short round, no peers, nothing written unless --output"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=3, help="of each run of wrk")
    parser.add_argument("--model-dir", type=lambda text: Path(text).resolve(), default=ROOT / "models")
    parser.add_argument("--peers", default=",".join(PEERS), help="comma-separated; none leaves all out")
    parser.add_argument(
        "--only", help="measure ours beside these sides alone, comma-separated; nothing written unless --output"
    )
    parser.add_argument("--server-core", type=int, default=0)
    parser.add_argument("--client-core", type=int, default=1)
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/serving.json")
    parser.add_argument("--strict", action="store_true", help="exit 1 where a figure that must be reached is missed")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rounds, arguments.seconds, arguments.peers = 1, 1, "none"
    elif arguments.output is None and arguments.only is None:
        arguments.output = HERE / "results" / "serving.json"
    versions_there = sorted((arguments.model_dir / "digits").glob("[1-9]*"), key=lambda path: int(path.name))
    arguments.model = versions_there[-1] / "model.onnx"

    sides, left_out = chosen_sides(arguments, parser)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with (folder / "servers.log").open("w") as log:
            report = run(sides, left_out, arguments, folder, log)
    print_table(report["median"], CELLS, report["raw_session_run_32_rows_per_s"])
    print_rules(report)
    for name, why in left_out.items():
        print(f"left out: {name}: {why}")
    return conclude(report, arguments)


def times(table, name):
    """Each side's rates by those of the side of this name, where it was measured."""
    base = table.get(name, {})
    return {
        side: {cell: round(item["rate"] / base[cell]["rate"], 2) for cell, item in row.items() if cell in base}
        for side, row in table.items()
    }


def reason(error):
    return str(error).strip().splitlines()[0]


def begin(side, arguments, log, left_out):
    """Start a side and see that it answers as the model does; whether so, a peer that does not is left out."""
    try:
        side.start(arguments.model, arguments.server_core, log)
        if side.check:
            parity(side, arguments.model, CELLS)
    except (RuntimeError, OSError, AssertionError) as error:
        side.stop()
        if side.name not in (*PEERS, *known.TRITON):
            raise
        left_out[side.name] = reason(error)
        return False
    return True


def run(sides, left_out, arguments, folder, log):
    starts = start_times(arguments.model, arguments.model_dir, arguments.server_core, log, 1 if arguments.quick else 5)
    together = [side for side in sides if side.name not in APART]
    try:
        for side in list(together):
            if not begin(side, arguments, log, left_out):
                together.remove(side)
        runs, raw, one = measure(together, CELLS, arguments, folder)
    except (RuntimeError, OSError, AssertionError):
        log.flush()
        sys.stderr.write(Path(log.name).read_text()[-3000:])
        raise
    finally:
        for side in together:
            side.stop()
    for side in sides:
        if side.name in APART:
            try:
                if begin(side, arguments, log, left_out):
                    runs |= measure([side], CELLS, arguments, folder, with_raw=False)[0]
            except (RuntimeError, OSError, AssertionError) as error:
                left_out[side.name] = reason(error)
            finally:
                side.stop()
    both = {} if arguments.only is not None else two_workers(arguments, CELLS, log, folder)
    table = {name: {cell: median(items) for cell, items in row.items()} for name, row in runs.items()}
    raw_rate, one_us = statistics.median(raw), statistics.median(one)
    return {
        "benchmark": "serving",
        **about(),
        "settings": {"server_cores": 1, "onnxruntime_threads": 1, "rounds": arguments.rounds,
                     "seconds": arguments.seconds,
                     "model": arguments.model.relative_to(arguments.model_dir).as_posix()},
        "median": table,
        "times_naive_def": times(table, "naive def"),
        "ours_times": {
            name: {cell: round(table["ours"][cell]["rate"] / item["rate"], 2) for cell, item in row.items()}
            for name, row in table.items()
        },
        "raw_session_run_32_rows_per_s": round(raw_rate, 1),
        "session_run_1_row_us": round(one_us, 1),
        "start_to_ready_s": [round(value, 3) for value in starts],
        "two_workers_on_both_cores": both,
        "must_reach": verdicts(table, raw_rate, one_us, statistics.median(starts)),
        "left_out": left_out,
        "rounds": runs,
    }  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
