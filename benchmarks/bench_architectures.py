"""Take some eighty families of architectures, small and untrained, from torch through the file to the server.

Each is converted by `sketch_`, exported, run by onnxruntime at another batch size and length, and asked of the server;
a family fails where a figure is not what it has to be.

    python benchmarks/bench_architectures.py                  all: two or three minutes on two cores
    python benchmarks/bench_architectures.py --only BERT ViT  those named; the others stay as they were recorded
    python benchmarks/bench_architectures.py --quick          four of them, written nowhere
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import logging
import multiprocessing
import os
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parent))

import torch
from architectures.examine import Asked, Result, ask, examine
from architectures.families import FAMILIES
from architectures.packages import missing
from serving.machine import about
from serving.sides import ours

PACKAGES = ("torch", "transformers", "peft", "timm", "torchvision", "onnx", "onnxruntime")
QUICK = ("BERT", "GPT-2", "ViT", "LSTM")


def examine_one(name: str, repository: Path) -> tuple[Result, Asked | None]:
    """A family by its name, in a process of the pool."""
    torch.set_num_threads(1)
    family = next(family for family in FAMILIES if family.name == name)
    lack = missing(family.package)
    if lack is not None:
        raise LookupError(lack)
    logging.disable(logging.WARNING)
    return examine(family, repository)


def examine_all(
    names: list[str], repository: Path, processes: int
) -> tuple[list[Result], list[Asked | None], list[str]]:
    """Every family, or those named, and what went wrong."""
    results, asked, failed = [], [], []
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, spawn) as pool:
        chosen = [family.name for family in FAMILIES if not names or family.name in names]
        futures = {name: pool.submit(examine_one, name, repository) for name in chosen}
        for name, future in futures.items():
            try:
                result, question = future.result()
            except Exception as error:  # noqa: BLE001  the others go on
                print(f"{name:30} FAILED       {type(error).__name__}: {error}", flush=True)
                failed.append(name)
                continue
            print(f"{name:30} {result.status:12} {result.seconds:5.1f} s", flush=True)
            results.append(result)
            asked.append(question)
    return results, asked, failed


def serve_all(results: list[Result], asked: list[Asked | None], repository: Path) -> list[Result]:
    """Ask one server, which has all the models."""
    server = ours(repository)
    with (repository.parent / "server.log").open("w") as log:
        server.start(repository, 0, log)
        try:
            return [
                result if question is None else dataclasses.replace(result, served=ask(server.url(""), question))
                for result, question in zip(results, asked, strict=True)
            ]
        finally:
            server.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", default=[], help="names of families")
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)), help="side by side")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "architectures.json")
    arguments = parser.parse_args()
    names = list(QUICK) if arguments.quick else arguments.only
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        repository = Path(folder) / "models"
        repository.mkdir()
        results, asked, failed = examine_all(names, repository, arguments.processes)
        results = serve_all(results, asked, repository)
    print(f"{len(results)} families in {time.perf_counter() - begin:.0f} s")
    if not arguments.quick:
        known = bool(arguments.only) and arguments.out.exists()
        before = json.loads(arguments.out.read_text(encoding="utf-8"))["families"] if known else []
        rows = {row["name"]: row for row in before} | {entry.name: entry.as_json() for entry in results}
        packages = [name for name in PACKAGES if importlib.util.find_spec(name) is not None]
        ordered = [rows[family.name] for family in FAMILIES if family.name in rows]
        result = {**about(packages), "threads": 1, "families": ordered}
        arguments.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        print(f"wrote {arguments.out}")
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
