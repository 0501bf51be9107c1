"""Runs the benchmarks of this machine, one after the other; each writes its JSON into benchmarks/results/.

    python benchmarks/run.py                  all: some two hours on two cores, alone on the machine
    python benchmarks/run.py layer savings    those named
    python benchmarks/run.py --quick          a smoke test of those that know --quick: nothing is written

What a benchmark needs and is not there (a Docker engine, wrk) is said, and that benchmark is left out. Those below
benchmarks/gpu/ need a CUDA device and are run there by themselves.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from reporting.results import FOLDER, ROOT, head


@dataclass(frozen=True)
class Benchmark:
    """One script.

    Attributes:
        name: of its script, bench_NAME.py.
        arguments: for a run that is to be kept.
        result: the JSON that it writes.
        needs: programs without which it can't run.
        quick: whether it knows --quick.
        prepare: a command that runs first.
    """

    name: str
    arguments: tuple[str, ...] = ()
    result: str = ""
    needs: tuple[str, ...] = ()
    quick: bool = True
    prepare: tuple[str, ...] = ()

    @property
    def json(self) -> Path:
        return FOLDER / f"{self.result or self.name}.json"


BENCHMARKS = (
    Benchmark("savings", quick=False),
    Benchmark("accuracy"),
    Benchmark("recipe"),
    Benchmark("layer", ("--out", "benchmarks/results/bench_layer.json"), result="bench_layer", quick=False),
    Benchmark("export"),
    Benchmark("conversion", ("--out", "benchmarks/results/conversion.json"), quick=False),
    Benchmark("convert_speed", ("--threads", "1", "--out", "benchmarks/results/convert_speed.json"), quick=False),
    Benchmark("conv", ("--out", "benchmarks/results/conv.json"), quick=False),
    Benchmark("experts", ("--out", "benchmarks/results/experts.json"), quick=False),
    Benchmark("tied", ("--out", "benchmarks/results/tied.json"), quick=False),
    Benchmark("rnn", ("--out", "benchmarks/results/rnn.json"), quick=False),
    Benchmark("architectures"),
    Benchmark("compress", ("--out", "benchmarks/results/compress.json"), quick=False),
    Benchmark("serving", needs=("wrk", "taskset")),
    Benchmark("start", needs=("taskset",)),
    Benchmark("grpc", needs=("wrk", "h2load", "taskset")),
    Benchmark("ablation", needs=("wrk", "taskset")),
    Benchmark("overload", needs=("wrk", "taskset")),
    Benchmark("reload", needs=("taskset",)),
    Benchmark("foreign", needs=("taskset",)),
    Benchmark("scaling", needs=("docker", "wrk"), prepare=("docker", "compose", "build", "server")),
)


def docker_answers() -> bool:
    return subprocess.run(["docker", "info"], capture_output=True, check=False).returncode == 0


def run(benchmark: Benchmark, *, quick: bool) -> str:
    """Run one; returns what became of it: "done", "left out: …" or "FAILED: …"."""
    missing = [program for program in benchmark.needs if shutil.which(program) is None]
    if "docker" in benchmark.needs and "docker" not in missing and not docker_answers():
        missing.append("a Docker engine that answers")
    if missing:
        return f"left out: needs {', '.join(missing)}"
    if quick and not benchmark.quick:
        return "left out: has no --quick"
    command = [
        sys.executable,
        f"benchmarks/bench_{benchmark.name}.py",
        *(["--quick"] if quick else benchmark.arguments),
    ]
    print(f"\n=== {' '.join(command[1:])}", flush=True)
    began = time.time()
    if benchmark.prepare and (status := subprocess.run(benchmark.prepare, cwd=ROOT, check=False).returncode):
        return f"FAILED: {' '.join(benchmark.prepare)}: exit status {status}"
    status = subprocess.run(command, cwd=ROOT, check=False).returncode
    if status:
        return f"FAILED: exit status {status}"
    if quick:
        return "done"
    if not benchmark.json.exists() or benchmark.json.stat().st_mtime < began:
        return f"FAILED: it did not write {benchmark.json.relative_to(ROOT)}"
    said = head(json.loads(benchmark.json.read_text(encoding="utf-8")))
    silent = [key for key in ("commit", "machine", "versions") if not said[key]]
    return f"FAILED: its JSON does not say {', '.join(silent)}" if silent else f"done in {time.time() - began:.0f} s"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="; ".join(benchmark.name for benchmark in BENCHMARKS))
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    known = {benchmark.name: benchmark for benchmark in BENCHMARKS}
    unknown = [name for name in arguments.names if name not in known]
    if unknown:
        parser.error(f"there is no benchmark {unknown[0]!r}; there are: {', '.join(known)}")
    chosen = [known[name] for name in arguments.names] or list(BENCHMARKS)
    ended = {benchmark.name: run(benchmark, quick=arguments.quick) for benchmark in chosen}
    print()
    for name, what in ended.items():
        print(f"{name:<12}{what}")
    return int(any(what.startswith("FAILED") for what in ended.values()))


if __name__ == "__main__":
    sys.exit(main())
