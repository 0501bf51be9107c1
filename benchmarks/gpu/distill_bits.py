"""Distillation in bits on a GPU: the sentence encoder of distill.py, sketched, trained, quantized, and trained again.

    python benchmarks/gpu/distill.py --texts FOLDER          needs no GPU
    python benchmarks/gpu/distill_bits.py --from FOLDER --ratio 0.5 --out benchmarks/results/gpu_distill_bits.json

Cosine to the original's embeddings of 192 held-out texts: after `sketch_and_distill`, after `quantize_`, and after
`distill_` of the quantized model; with the bytes of the linear layers.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[0]), str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

import numpy as np  # noqa: E402
import torch  # noqa: E402
from distill import CALIBRATION, HELD_OUT, batches, cosine_to, encoder  # noqa: E402
from torch import nn  # noqa: E402

import panther as pr  # noqa: E402
from panther.nn import cuda  # noqa: E402
from panther.nn.quantized import BlockLinear  # noqa: E402


def linear_bytes(model: nn.Module) -> int:
    """Bytes of the quantized linear layers; all of the encoder's are quantized."""
    return sum(module.stored_bytes for module in model.modules() if isinstance(module, BlockLinear))


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """One ratio, sketched, trained, quantized and trained in bits."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(2)
    folder, device = arguments.folder, arguments.device
    model = encoder(folder, device)
    texts = np.load(folder / "texts.npz")
    ids, lengths, first = texts["ids"], texts["lengths"], int(texts["more"])
    held_out = batches(ids[-HELD_OUT:], lengths[-HELD_OUT:], device)
    calibration = batches(ids[first:][:CALIBRATION], lengths[first:][:CALIBRATION], device)
    inputs = batches(ids[:-HELD_OUT], lengths[:-HELD_OUT], device)
    cosine = cosine_to(model, held_out)
    row: dict[str, Any] = {
        "ratio": arguments.ratio,
        "bits": arguments.bits,
        "texts": len(ids) - HELD_OUT,
        "steps": arguments.steps,
        "bits_steps": arguments.bits_steps,
        "hidden_weight": arguments.hidden_weight,
        "lr": arguments.lr,
    }
    started = time.perf_counter()
    made = pr.sketch_and_distill(
        model,
        inputs,
        ratio=arguments.ratio,
        stages=arguments.stages,
        calibration=calibration,
        steps=arguments.steps,
        patience=20,
        progress=False,
        checkpoints=arguments.checkpoints,
        on_stage=lambda stage: print(arguments.ratio, stage.ratio, stage.distillation, flush=True),
    )
    student = made.model
    row["distilled"] = cosine(student)
    row["seconds"] = time.perf_counter() - started
    print(json.dumps(row), flush=True)
    pr.quantize_(student, calibration=calibration, weights=pr.quantize.Blocks(bits=arguments.bits), embedding_bits=8)
    row["quantized"], row["linear_bytes"] = cosine(student), linear_bytes(student)
    row["quantized_seconds"] = time.perf_counter() - started - row["seconds"]
    print(json.dumps(row), flush=True)
    found = pr.distill_(
        student,
        model,
        inputs,
        steps=arguments.bits_steps,
        hidden_weight=arguments.hidden_weight,
        lr=arguments.lr,
        patience=20,
        progress=False,
    )
    print(found, flush=True)
    row["trained_in_bits"], row["bits_seconds"] = cosine(student), found.seconds
    if linear_bytes(student) != row["linear_bytes"]:
        raise SystemExit("the training changed the bytes")
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--from", dest="folder", type=Path, required=True)
    parser.add_argument("--out", type=Path, help="rows are added to it")
    parser.add_argument("--checkpoints", type=Path, help="a folder for the state of `sketch_and_distill`")
    parser.add_argument("--commit", default="", help="the commit that is measured")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--backend", default="products", choices=cuda.BACKENDS)
    parser.add_argument("--ratio", type=float, required=True)
    parser.add_argument("--stages", type=float, nargs="*", help="of `sketch_and_distill`; its own if left out")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--bits", type=int, default=4, choices=(4, 8))
    parser.add_argument("--bits-steps", type=int, default=2000)
    parser.add_argument("--hidden-weight", type=float, default=1.0)
    parser.add_argument("--lr", type=float, default=0.005)
    arguments = parser.parse_args()
    with cuda.backend(arguments.backend):
        row = measure(arguments)
    row["commit"] = arguments.commit
    print(json.dumps(row), flush=True)
    if arguments.out is not None:
        report = json.loads(arguments.out.read_text()) if arguments.out.exists() else {"rows": []}
        report["rows"].append(row)
        report["environment"] = {
            "commit": arguments.commit,
            "taken_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": {"gpu": torch.cuda.get_device_name() if arguments.device == "cuda" else "none"},
            "versions": {"torch": torch.__version__},
        }
        arguments.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
