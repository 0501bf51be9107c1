"""Fuzz what reads input from outside; see docs/reliability.md.

    make fuzz INPUTS=2400000

Coverage-guided (atheris, on libFuzzer) for the decoders, the card and the checkpoints; mutated files in a process each
for the loading of ONNX files; schemathesis for the HTTP interface; every truncation of a file against a real server.
Prints a summary in JSON, and exits with 1 where anything was found. It stops by itself.
"""

import argparse
import json
import os
import random
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
ROOT = Path(__file__).parents[3]

HANG_S = 10
"""An input that takes longer is a finding."""
GROWTH_BYTES = 64 * 2**20
"""Of resident memory, from a tenth of the way to the end; libFuzzer keeps its corpus, which is some of that."""
MAX_BYTES = 4096


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def fuzz(name: str, inputs: int, seconds: int, folder: Path) -> None:
    """One target in this process, by atheris; what came of it is written to ``folder`` as it goes."""
    import atheris

    with atheris.instrument_imports(include=["app", "panther"]):
        if name == "checkpoint":
            import panther.checkpoint  # noqa: F401 - the target itself imports it too late to be watched
        import fuzz_inputs
        import fuzz_targets

    target = fuzz_targets.TARGETS[name]
    if name == "checkpoint":
        import torch

        torch.set_num_threads(1)
    corpus = folder / "corpus"
    corpus.mkdir()
    for number, seed in enumerate(fuzz_inputs.seeds(name)):
        (corpus / f"seed{number:03}").write_bytes(seed)
    counts = Counter()
    record = {"slowest_ms": 0.0}

    def note() -> None:
        text = json.dumps({**counts, **record, "resident_bytes": resident_bytes()})
        (folder / "counts.part").write_text(text)
        (folder / "counts.part").replace(folder / "counts.json")

    def one(data: bytes) -> None:
        began = time.perf_counter()
        accepted = target.run(data)
        record["slowest_ms"] = max(record["slowest_ms"], 1000 * (time.perf_counter() - began))
        counts["inputs"] += 1
        counts["accepted" if accepted else "refused"] += 1
        if counts["inputs"] == inputs // 10:
            record["resident_bytes_early"] = resident_bytes()
        if counts["inputs"] % 2000 == 0 or counts["inputs"] >= inputs:
            note()

    def mutate(data: bytes, max_size: int, seed: int) -> bytes:
        if seed % 4 == 0:
            return atheris.Mutate(data, max_size)
        return fuzz_inputs.change(data, random.Random(seed), fuzz_inputs.KEPT[name])[:max_size]

    flags = {
        "runs": inputs,
        "max_total_time": seconds,
        "timeout": HANG_S,
        "max_len": MAX_BYTES,
        "mutate_depth": 1,  # more would hardly ever leave an input that is accepted
        "rss_limit_mb": 4096,
        "seed": 1,
        "print_final_stats": 1,
        "artifact_prefix": f"{folder}/found-",
    }
    arguments = [sys.argv[0], *(f"-{key}={value}" for key, value in flags.items()), str(corpus)]
    atheris.Setup(arguments, one, custom_mutator=mutate)
    atheris.Fuzz()


def fuzz_target(name: str, inputs: int, seconds: int) -> dict:
    """One target in a process of its own, and what came of it."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        command = [sys.executable, __file__, "--target", name, "--inputs", str(inputs), "--seconds", str(seconds)]
        ended = subprocess.run(
            [*command, "--folder", folder],
            capture_output=True, text=True, errors="replace", check=False, timeout=2 * seconds + 120,
        )  # fmt: skip
        counts_file = Path(folder) / "counts.json"
        counts = json.loads(counts_file.read_text()) if counts_file.is_file() else {}
        found = [file.read_bytes() for file in Path(folder).glob("found-*")]
        features = re.findall(r"cov: (\d+) ft: (\d+)", ended.stderr)
    executed = re.search(r"stat::number_of_executed_units: (\d+)", ended.stderr)
    early, late = counts.pop("resident_bytes_early", None), counts.pop("resident_bytes", None)
    summary = {
        "inputs": int(executed[1]) if executed else counts.get("inputs", 0),
        "accepted": counts.get("accepted", 0),
        "refused": counts.get("refused", 0),
        "seconds": round(time.monotonic() - began, 1),
        "branches_covered": int(features[-1][0]) if features else None,
        "slowest_ms": round(counts.get("slowest_ms", 0), 1),
        "resident_growth_bytes": None if early is None or late is None else late - early,
        "findings": [],
    }
    if ended.returncode != 0 or found:
        lines = [line for line in ended.stderr.splitlines() if re.match(r" === |[A-Za-z_.]+: |==\d+==", line)]
        summary["findings"] = [{"inputs": [content.hex() for content in found], "said": lines[-12:]}]
        sys.stderr.write(ended.stderr[-4000:])
    if (summary["resident_growth_bytes"] or 0) > GROWTH_BYTES:
        summary["findings"].append({"said": f"memory grew by {summary['resident_growth_bytes']} bytes"})
    return summary


def load_models(inputs: int, seconds: int) -> dict:
    """Mutated ONNX files by the way that a server loads them; what ends a process must end only the trial's."""
    import fuzz_models

    from app.errors import LoadError
    from app.repository.trial_load import Trial, Trials

    rng = random.Random(1)
    files = fuzz_models.seeds()
    trials = Trials()
    kinds: Counter[str] = Counter()
    findings, ended = [], []
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        for number in range(inputs):
            if time.monotonic() - began > seconds:
                break
            name, content = rng.choice(files)
            changed = fuzz_models.change(content, rng)
            path.write_bytes(changed)
            one = time.monotonic()
            try:
                trials.run(Trial("m", "1", str(path), 2, 8, 5.0))
                kinds["loaded"] += 1
            except LoadError as error:
                text = str(error)
                kind = next((key for key in fuzz_models.KINDS if fuzz_models.KINDS[key] in text), "refused")
                kinds[kind] += 1
                if kind in ("ended the process", "too long"):
                    ended.append({"model": name, "said": text[:200]})
                if "can't be tried" in text:
                    findings.append({"input": number, "model": name, "said": text[:300]})
            if time.monotonic() - one > 5.0 + HANG_S:
                findings.append({"input": number, "model": name, "said": "no answer in time"})
    trials.close()
    return {
        "inputs": sum(kinds.values()),
        **kinds,
        "kept_from_the_server": ended[:50],
        "seconds": round(time.monotonic() - began, 1),
        "findings": findings,
    }


def run_tests(what: str, path: str, **environment: str) -> dict:
    """Tests that sweep more where they are told to."""
    began = time.monotonic()
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-s", path],
        cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True, check=False, timeout=3600,
    )  # fmt: skip
    told = dict(re.findall(r"^fuzz: (\w+)=(\d+)$", ended.stdout, re.MULTILINE))
    findings = [] if ended.returncode == 0 else [{"said": ended.stdout.splitlines()[-30:]}]
    if findings:
        sys.stderr.write(ended.stdout[-6000:])
    return {**{key: int(value) for key, value in told.items()}, "test": path, "settings": environment,
            "seconds": round(time.monotonic() - began, 1), "findings": findings}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--inputs", type=int, default=2_400_000, help="of the decoders, all together")
    parser.add_argument("--models", type=int, default=8_000, help="mutated ONNX files")
    parser.add_argument("--files", type=int, default=2_000, help="damaged files that a server is told to load")
    parser.add_argument("--examples", type=int, default=100, help="of schemathesis, for each route")
    parser.add_argument(
        "--seconds", type=int, default=1200, help="for the decoders at most, and as much for the models"
    )
    parser.add_argument("--output", type=Path)
    parser.add_argument("--only", help="one target, or models, files or http")
    parser.add_argument("--target", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.target:
        fuzz(given.target, given.inputs, given.seconds, given.folder)
        return 0
    import fuzz_targets
    from serving.machine import about

    began = time.monotonic()
    parts = {
        name: lambda name=name, share=target.share: fuzz_target(
            name, int(given.inputs * share), max(20, int(given.seconds * share * 1.5))
        )
        for name, target in fuzz_targets.TARGETS.items()
    }
    parts["models"] = lambda: load_models(given.models, given.seconds)
    parts["files"] = lambda: run_tests("files", "tests/robustness/hostile", HOSTILE_FILES=str(given.files))
    parts["http"] = lambda: run_tests(
        "http", "tests/robustness/fuzz/test_openapi.py", FUZZ_EXAMPLES=str(given.examples)
    )
    results = {}
    for name, part in parts.items():
        if given.only in (None, name):
            results[name] = part()
            said = json.dumps({**results[name], "kept_from_the_server": None})
            sys.stderr.write(f"{name}: {said[:600]}\n")
    decoders = [results[name] for name in fuzz_targets.TARGETS if name in results]
    summary = {
        **about(),
        "decoder_inputs": sum(item["inputs"] for item in decoders),
        "findings": sum(len(item["findings"]) for item in results.values()),
        "seconds": round(time.monotonic() - began, 1),
        "hang_limit_s": HANG_S,
        "targets": results,
    }
    text = json.dumps(summary, indent=1)
    if given.output is not None:
        given.output.write_text(text + "\n")
    sys.stdout.write(text + "\n")
    return 1 if summary["findings"] else 0


if __name__ == "__main__":
    sys.exit(main())
