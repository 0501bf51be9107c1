"""Measures the gain of each optimization of the request path: the server with all of them, and without one.

Every variant runs as a separate server on one core, all at once and asked in turn by wrk (Debian's) from the other
core, in many short rounds; the order turns with each round. Processor time of the server for each request is what
decides: other work on the machine moves it least. Before anything is timed, every variant's answers are compared with
onnxruntime's own.

    python benchmarks/bench_ablation.py            about half an hour
    python benchmarks/bench_ablation.py --quick    about two minutes: a smoke test, not a measurement
"""

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from bench_serving import Cell, drive, parity
from serving import sides as known
from serving.machine import about
from serving.without import TRICKS

HERE = Path(__file__).parent
ROOT = HERE.parent
SHIPPED = "as shipped"
# Each connection is new in the last one: what accepts connections has no part in the others.
CELLS = {
    "1 row JSON, 1 client": Cell("1 row JSON, 1 client", "json", 1, 1),
    "1 row JSON, 64 clients": Cell("1 row JSON, 64 clients", "json", 1, 64),
    "64 rows binary, 1 client": Cell("64 rows binary, 1 client", "binary", 64, 1),
    "64 rows binary, 64 clients": Cell("64 rows binary, 64 clients", "binary", 64, 64),
    "1 row JSON, 64 new connections": Cell("1 row JSON, 64 new connections", "json", 1, 64),
}


class Variant(known.Side):
    """The server without one trick."""

    def cpu_s(self):
        """Processor seconds of all threads, to the nanosecond; those of ``stat`` come in hundredths of a second."""
        tasks = Path(f"/proc/{self.process.pid}/task").iterdir()
        return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


def variant(trick, model_dir):
    side = known.ours(model_dir)
    command = [side.command[0], str(HERE / "serving" / "without.py"), trick, *side.command[3:]]
    name = f"without: {trick}" if trick else SHIPPED
    return Variant(name, command, side.make, folder=ROOT, ready_path=side.ready_path)


def with_new_connections(side):
    """The same side, asked to close each connection."""

    def closing(make):
        path, encode, decode = make

        def encoded(*arguments):
            headers, body = encode(*arguments)
            return {**headers, "Connection": "close"}, body

        return path, encoded, decode

    found = Variant(side.name, side.command, {kind: closing(make) for kind, make in side.make.items()})
    found.process, found.port = side.process, side.port
    return found


def measure(sides, arguments, folder):
    """Rounds of each cell and variant: microseconds of processor time a request, and the median latency."""
    runs = {cell: {side.name: [] for side in sides} for cell in CELLS}
    for number in range(arguments.rounds):
        turned = sides[number % len(sides) :] + sides[: number % len(sides)]
        for name, cell in CELLS.items():
            for side in turned:
                asked = with_new_connections(side) if "new connections" in name else side
                found = drive(asked, cell, arguments.client_core, arguments.seconds, folder, cpu_s=Variant.cpu_s)
                runs[name][side.name].append({"cpu_us": found["cpu_us"], "p50_us": found["p50_us"]})
        print(f"round {number + 1} of {arguments.rounds} done", file=sys.stderr)
    return runs


def summary(runs):
    """Medians, and what leaving a trick out costs: the median over the rounds of the ratio to the whole server."""
    found = {}
    for cell, by_side in runs.items():
        shipped = by_side[SHIPPED]
        found[cell] = {}
        for name, rounds in by_side.items():
            found[cell][name] = {
                f"{key}{suffix}": round(statistics.median(values), 3)
                for key in ("cpu_us", "p50_us")
                for suffix, values in (
                    ("", [each[key] for each in rounds]),
                    ("_of_shipped", [each[key] / base[key] for each, base in zip(rounds, shipped, strict=True)]),
                )
            }
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one short round; nothing is written unless --output")
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--seconds", type=int, default=1, help="of each run of wrk")
    parser.add_argument("--model-dir", type=lambda text: Path(text).resolve(), default=ROOT / "models")
    parser.add_argument("--server-core", type=int, default=0)
    parser.add_argument("--client-core", type=int, default=1)
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/ablation.json")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rounds = 1
    elif arguments.output is None:
        arguments.output = HERE / "results" / "ablation.json"
    versions = sorted((arguments.model_dir / "digits").glob("[1-9]*"), key=lambda path: int(path.name))
    model = versions[-1] / "model.onnx"
    sides = [variant(trick, arguments.model_dir) for trick in ("", *TRICKS)]
    with tempfile.TemporaryDirectory() as name, (Path(name) / "servers.log").open("w") as log:
        try:
            for side in sides:
                side.start(model, arguments.server_core, log)
                parity(side, model, CELLS.values())
            runs = measure(sides, arguments, Path(name))
        except (RuntimeError, OSError, AssertionError):
            log.flush()
            sys.stderr.write(Path(log.name).read_text()[-3000:])
            raise
        finally:
            for side in sides:
                side.stop()
    report = {
        "benchmark": "ablation",
        **about(),
        "settings": {"server_cores": 1, "onnxruntime_threads": 1, "rounds": arguments.rounds,
                     "seconds": arguments.seconds, "model": model.relative_to(arguments.model_dir).as_posix()},
        "median": summary(runs),
        "rounds": runs,
    }  # fmt: skip
    for cell, by_side in report["median"].items():
        print(cell)
        for side, found in by_side.items():
            print(f"  {side:<32}{found['cpu_us']:>9.1f} us CPU ({found['cpu_us_of_shipped']:.3f})"
                  f"{found['p50_us']:>9.0f} us p50 ({found['p50_us_of_shipped']:.3f})")  # fmt: skip
    if arguments.output is not None:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps(report, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
