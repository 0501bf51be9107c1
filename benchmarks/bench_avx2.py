"""Quantized files on a CPU with AVX2 alone beside the same on one with VNNI: accuracy and speed.

    python benchmarks/bench_compress.py --files FILES
    python benchmarks/bench_avx2.py --files FILES --out benchmarks/results/compress_avx2.json

The files are those of bench_compress.py. Both modes run on this machine, which has VNNI: without_vnni.py makes
onnxruntime choose its AVX2 kernels, and this is proven first, by a product that only these kernels saturate. Latency is
processor time of one thread, sides in turn within one process of each mode.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import without_vnni
from onnx import TensorProto, helper, numpy_helper

SIDES = (
    "float32",
    "quantize_",
    "quantize_, no smoothing",
    "quantize_, int4",
    "quantize_, int8 in blocks of 128",
    "compress, 15 MB",
    "quantize_dynamic, per channel",
    "quantize_dynamic, 7 bits (safe on AVX2)",
)
VNNI, AVX2 = "VNNI", "AVX2"
_INNER = 8


def session(model: str | bytes) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def largest_sum() -> int:
    """The sum of 8 products 255 · 127 as onnxruntime computes it; AVX2 saturates each pair at 32767."""
    B = numpy_helper.from_array(np.full((_INNER, 16), 127, np.int8), "B")
    y = helper.make_tensor_value_info("y", TensorProto.INT32, [4, 16])
    A = helper.make_tensor_value_info("A", TensorProto.UINT8, [4, _INNER])
    graph = helper.make_graph([helper.make_node("MatMulInteger", ["A", "B"], ["y"])], "g", [A], [y], [B])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    return int(session(model.SerializeToString()).run(None, {"A": np.full((4, _INNER), 255, np.uint8)})[0][0, 0])


def measured(job: dict[str, Any], inputs: dict[str, np.ndarray]) -> dict[str, Any]:
    """Cosine and latency of each side in the mode of this process."""
    sessions = {side: session(path) for side, path in job["files"].items()}
    sides: dict[str, dict[str, float]] = {}
    first = {}
    for side, runs in sessions.items():
        cosines = []
        for index in range(job["batches"]):
            given = {name: inputs[f"{index}.{name}"] for name in job["names"]}
            found = runs.run(None, given)[0]
            first.setdefault(side, found)
            cosines.append((found * inputs[f"{index}.expected"]).sum(-1))
        every = np.concatenate(cosines)
        rows = {name: inputs[f"rows.{name}"] for name in job["names"]}
        alone = [runs.run(None, {name: rows[name][i : i + 1] for name in rows})[0] for i in range(16)]
        moved = float(np.abs(runs.run(None, rows)[0] - np.concatenate(alone)).max())
        sides[side] = {"cosine": float(every.mean()), "lowest_cosine": float(every.min()), "moved_by_the_batch": moved}
    for size in (1, 16):
        given = {name: inputs[f"rows.{name}"][:size] for name in job["names"]}
        repeats = 4 if size == 1 else 1
        times: dict[str, list[float]] = {side: [] for side in sessions}
        for turn in range(job["turns"] + 2):
            for side, runs in list(sessions.items())[:: 1 if turn % 2 else -1]:
                started = time.process_time()
                for _ in range(repeats):
                    runs.run(None, given)
                if turn > 1:
                    times[side].append(1e3 * (time.process_time() - started) / repeats)
        for side, taken in times.items():
            sides[side][f"median_ms_{size}"] = float(np.median(taken))
            sides[side][f"speed_{size}"] = float(np.median(times["float32"]) / np.median(taken))
    library = os.environ.get("WITHOUT_VNNI")
    return {
        "largest_sum": largest_sum(),
        "cpuid_answered": ctypes.CDLL(library).emulated() if library else 0,
        "sides": sides,
        "float32_outputs": first["float32"].tolist(),
    }


def in_mode(mode: str, job: Path, folder: Path) -> dict[str, Any]:
    patched = folder / mode
    patched.mkdir()
    env = without_vnni.environment(patched) if mode == AVX2 else dict(os.environ)
    found = subprocess.run(
        [sys.executable, __file__, "--measure", job], env=env, stdout=subprocess.PIPE, text=True, check=True
    )
    result: dict[str, Any] = json.loads(found.stdout)
    exact = _INNER * 255 * 127
    wanted = exact if mode == VNNI else _INNER // 2 * 32767
    if result["largest_sum"] != wanted:
        raise SystemExit(f"{mode}: the sum is {result['largest_sum']}, not {wanted}: other kernels ran")
    print(mode, json.dumps(result["sides"], indent=1), flush=True)
    return result


def measure(files: Path, turns: int, texts: int) -> dict[str, Any]:
    import torch
    from bench_compress import encoder, feeds

    known = json.loads((files / "sides.json").read_text())
    missing = [side for side in SIDES if side not in known]
    if missing:
        raise SystemExit(f"{files} lacks {', '.join(missing)}: run bench_compress.py --files {files} first")
    encoded = encoder(texts)
    arrays = {f"rows.{name}": array for name, array in feeds(encoded.rows).items()}
    for index, batch in enumerate(encoded.held_out):
        arrays |= {f"{index}.{name}": array for name, array in feeds(batch).items()}
        with torch.no_grad():
            arrays[f"{index}.expected"] = encoded.model(**batch).numpy()
    job = {
        "files": {side: str(files / known[side]["file"]) for side in SIDES},
        "names": list(encoded.rows),
        "batches": len(encoded.held_out),
        "turns": turns,
    }
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        np.savez(folder / "job.npz", job=json.dumps(job), **arrays)
        modes = {mode: in_mode(mode, folder / "job.npz", folder) for mode in (VNNI, AVX2)}
    outputs = [np.array(result.pop("float32_outputs")) for result in modes.values()]
    apart = float(np.abs(outputs[0] - outputs[1]).max())
    if apart > 1e-5:
        raise SystemExit(f"float32 outputs of both modes differ by {apart}")
    for side in SIDES:
        modes[AVX2]["sides"][side]["made_at"] = known[side]["commit"]
    return {
        "how": "both modes on one machine, which has VNNI: for AVX2, cpuid within onnxruntime hides AVX-512 and VNNI",
        "latency": f"processor time, one thread, medians of {turns} turns of each side in turn, 32 tokens a text",
        "float32_outputs_apart": apart,
        "load_average": os.getloadavg(),
        "modes": modes,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=Path, help="the folder that bench_compress.py --files made")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--turns", type=int, default=60)
    parser.add_argument("--texts", type=int, default=384)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        inputs = dict(np.load(arguments.measure))
        print(json.dumps(measured(json.loads(str(inputs.pop("job"))), inputs)))
        return
    if arguments.files is None:
        parser.error("--files is required")
    from serving.machine import about

    report = measure(arguments.files, arguments.turns, arguments.texts)
    report["environment"] = {**about(("torch", "onnxruntime", "transformers")), "threads": 1}
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
