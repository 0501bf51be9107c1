"""Accuracy against size: dense, sketched, low-rank and pruned networks of the same data, three seeds each.

Every network is in → 512 → 256 → classes with ReLU between, but for the dense ones of other widths. All are trained
from scratch by the same recipe (Adam, cosine, the same epochs, batches and learning rate), on the same rows in the same
order; only the pruned ones get more: the trained dense network, cut by magnitude over all layers, then trained on for
as many epochs at a quarter of the rate. A low-rank network, (x @ U) @ Vᵀ with both factors learned, has as many stored
values as the sketched one beside it (rank 2Lk) or as many learnable ones (rank Lk); a pruned one keeps as many values
as the sketched one stores. A layer that would be no smaller than a dense one is dense, in the sketched and the low-rank
networks alike.

Each trained network is then stored in 8 and in 4 bits too: by `quantize_` in blocks, sketched ones with their signs at
one bit where it keeps them; the weights that pruning left on a scale for each 128 of them.

    python benchmarks/bench_accuracy.py            about fifteen minutes on one core
    python benchmarks/bench_accuracy.py --quick    one seed, two epochs: a smoke test, not a measurement
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import statistics
import sys
import time
from pathlib import Path

import torch
from torch import nn
from torch.nn.utils import prune
from torch.utils.data import DataLoader

sys.path.insert(0, str(Path(__file__).parent))

from serving.machine import about

from panther.nn import SKLinear
from panther.quantize import Blocks, quantize_
from panther.train import evaluate, fit, load_digits
from panther.train.data import Dataset

WIDTHS = (512, 256)
DENSE_WIDTHS = (8, 16, 32, 64, 128, 256, 512)
SKETCHES = ((1, 4), (1, 8), (1, 16), (2, 16), (2, 32), (2, 64))
SEEDS = (0, 1, 2)
BATCH, LR = 64, 2e-3
BITS = (8, 4)
# calibration rows of quantization, and entries of a pruned weight that share a scale
CALIBRATION_ROWS, BLOCK = 512, 128
EPOCHS = {"digits": 30, "breast cancer": 20}


def load_table(*, seed: int) -> Dataset:
    """scikit-learn's breast cancer table, 569 rows of 30 numbers, standardised by the training rows."""
    from sklearn.datasets import load_breast_cancer
    from sklearn.model_selection import train_test_split

    x, y = load_breast_cancer(return_X_y=True)
    parts = train_test_split(x, y, test_size=0.25, stratify=y, random_state=seed)
    train_x, test_x = (torch.from_numpy(part).float() for part in parts[:2])
    train_y, test_y = (torch.from_numpy(part).long() for part in parts[2:])
    mean, std = train_x.mean(0), train_x.std(0)
    train_x, test_x = (train_x - mean) / std, (test_x - mean) / std
    return Dataset("breast cancer", train_x, train_y, test_x, test_y, ("malignant", "benign"), "standardised")


DATA = {"digits": load_digits, "breast cancer": load_table}


def network(make, d_in: int, classes: int, widths=WIDTHS) -> nn.Sequential:
    """in → widths → classes; ``make(d_in, d_out)`` makes the hidden layers, the last one is dense."""
    first, second = widths
    return nn.Sequential(make(d_in, first), nn.ReLU(), make(first, second), nn.ReLU(), nn.Linear(second, classes))


def sketched(L: int, k: int):
    def make(d_in: int, d_out: int) -> nn.Module:
        pays = 2 * L * k * (d_in + d_out) < d_in * d_out
        return SKLinear(d_in, d_out, L, k) if pays else nn.Linear(d_in, d_out)

    return make


def low_rank(rank: int):
    def make(d_in: int, d_out: int) -> nn.Module:
        if rank * (d_in + d_out) >= d_in * d_out:
            return nn.Linear(d_in, d_out)
        left, right = nn.Linear(d_in, rank, bias=False), nn.Linear(rank, d_out)
        # the product starts with the variance of a fresh nn.Linear, 1/(3·d_in), shared between the factors
        std = (1 / (3 * d_in * rank)) ** 0.25
        nn.init.normal_(left.weight, std=std)
        nn.init.normal_(right.weight, std=std)
        nn.init.uniform_(right.bias, -1 / math.sqrt(d_in), 1 / math.sqrt(d_in))
        return nn.Sequential(left, right)

    return make


def sizes(model: nn.Module) -> dict[str, int]:
    """Learnable and fixed values, and bytes of a file: floats, and a bit for each fixed sign."""
    learnable = sum(parameter.numel() for parameter in model.parameters())
    fixed = sum(layer.parameter_count().fixed for layer in model.modules() if isinstance(layer, SKLinear))
    return {
        "learnable": learnable,
        "fixed": fixed,
        "stored": learnable + fixed,
        "file_bytes": 4 * learnable + math.ceil(fixed / 8),
    }


def pruned_sizes(model: nn.Module) -> dict[str, int]:
    """The values that are left, and bytes of a file that tells by one bit for each weight which are left."""
    layers = [layer for layer in model if isinstance(layer, nn.Linear)]
    kept = sum(int(layer.weight.count_nonzero()) for layer in layers) + sum(layer.bias.numel() for layer in layers)
    bitmap = math.ceil(sum(layer.weight.numel() for layer in layers) / 8)
    return {"learnable": kept, "fixed": 0, "stored": kept, "file_bytes": 4 * kept + bitmap}


def in_bits(model: nn.Sequential, data: Dataset, bits: int) -> tuple[nn.Sequential, int]:
    """The network with its weights in so many bits, and bytes of a file."""
    smaller = copy.deepcopy(model)
    report = quantize_(smaller, calibration=data.train_x[:CALIBRATION_ROWS].split(128), weights=Blocks(bits, BLOCK))
    return smaller, sum(layer.bytes_after for layer in report.layers)


def pruned_in_bits(model: nn.Sequential, bits: int) -> tuple[nn.Sequential, int]:
    """A pruned network with what is left rounded to the nearest, a scale for each block of it; and bytes of a file."""
    smaller, size = copy.deepcopy(model), 0
    for layer in smaller:
        if not isinstance(layer, nn.Linear):
            continue
        prune.remove(layer, "weight")
        W = layer.weight.data
        kept = W != 0
        values = W[kept]
        blocks = nn.functional.pad(values, (0, -len(values) % BLOCK)).view(-1, BLOCK)
        largest = 2 ** (bits - 1) - 1
        scale = blocks.abs().amax(1, keepdim=True).clamp_min(torch.finfo(W.dtype).tiny) / largest
        W[kept] = (torch.round(blocks / scale) * scale).flatten()[: len(values)]
        size += math.ceil(len(values) * bits / 8) + 4 * len(blocks) + math.ceil(W.numel() / 8) + 4 * layer.bias.numel()
    return smaller, size


def train(model: nn.Module, data: Dataset, seed: int, epochs: int, lr: float) -> float:
    """Train and return the accuracy on the held-out rows, 0 to 1."""
    order = torch.Generator().manual_seed(seed)
    fit(model, DataLoader(data.train, batch_size=BATCH, shuffle=True, generator=order), epochs=epochs, lr=lr)
    return evaluate(model, DataLoader(data.test, batch_size=512))


def prune_to(model: nn.Sequential, weights: int) -> None:
    """Keep the largest weights, this many in all layers together."""
    layers = [(layer, "weight") for layer in model if isinstance(layer, nn.Linear)]
    total = sum(layer.weight.numel() for layer, _ in layers)
    prune.global_unstructured(layers, prune.L1Unstructured, amount=total - weights)


def prove(d_in: int, classes: int) -> None:
    """What is compared is what it is said to be; raises where not."""
    for L, k in SKETCHES:
        model = network(sketched(L, k), d_in, classes)
        twin = network(low_rank(2 * L * k), d_in, classes)
        if sizes(model)["stored"] != sizes(twin)["stored"]:
            raise SystemExit(f"L={L}, k={k}: the low-rank network does not have the size of the sketched one")
        layer, x = model[0], torch.randn(8, d_in)
        if not isinstance(layer, SKLinear):
            continue
        torch.testing.assert_close(layer(x), x @ layer.dense_weight().T + layer.bias, rtol=1e-4, atol=1e-5)
        if torch.linalg.matrix_rank(layer.dense_weight()) > min(2 * L * k, d_in):
            raise SystemExit(f"L={L}, k={k}: the weight has a rank over 2Lk")


def measure(name: str, seed: int, epochs: int) -> list[dict[str, object]]:
    data = DATA[name](seed=seed)
    d_in, classes = data.train_x.shape[1], len(data.labels)
    prove(d_in, classes)
    rows: list[dict[str, object]] = []

    def add(method: str, setting: str, model: nn.Sequential, size: dict[str, int], accuracy: float) -> None:
        held_out = DataLoader(data.test, batch_size=512)
        whole = {"data": name, "method": method, "setting": setting, "seed": seed}
        rows.append({**whole, "bits": 32, **size, "accuracy": accuracy})
        for bits in BITS:
            smaller, file_bytes = pruned_in_bits(model, bits) if method == "pruned" else in_bits(model, data, bits)
            found = {**size, "file_bytes": file_bytes, "accuracy": evaluate(smaller, held_out)}
            rows.append({**whole, "bits": bits, **found})
        said = ", ".join(f"{row['file_bytes'] / 1000:.1f} kB {row['accuracy']:.4f}" for row in rows[-1 - len(BITS) :])
        print(f"{name:<14}{method:<10}{setting:<16}seed {seed}  {said}", flush=True)

    def fresh(make, widths=WIDTHS) -> nn.Sequential:
        torch.manual_seed(seed)
        return network(make, d_in, classes, widths)

    for width in DENSE_WIDTHS:
        dense = fresh(nn.Linear, (width, width // 2))
        accuracy = train(dense, data, seed, epochs, LR)
        add("dense", f"width {width}", dense, sizes(dense), accuracy)
    trained = dense.state_dict()
    for rank in sorted({rank for L, k in SKETCHES for rank in (L * k, 2 * L * k)}):
        model = fresh(low_rank(rank))
        accuracy = train(model, data, seed, epochs, LR)
        add("low rank", f"rank {rank}", model, sizes(model), accuracy)
    for L, k in SKETCHES:
        model = fresh(sketched(L, k))
        accuracy = train(model, data, seed, epochs, LR)
        size = sizes(model)
        add("sketched", f"L={L}, k={k}", model, size, accuracy)
        pruned = fresh(nn.Linear)
        pruned.load_state_dict(trained)
        biases = sum(layer.bias.numel() for layer in pruned if isinstance(layer, nn.Linear))
        prune_to(pruned, size["stored"] - biases)
        accuracy = train(pruned, data, seed, epochs, LR / 4)
        left = pruned_sizes(pruned)
        if left["stored"] > size["stored"]:
            raise SystemExit(f"pruned to {left['stored']} values, over {size['stored']}")
        add("pruned", f"as L={L}, k={k}", pruned, left, accuracy)
    return rows


def summarise(rows: list[dict[str, object]]) -> list[dict[str, object]]:
    """The mean and the spread over the seeds of each network; one entry for each of a size."""
    groups: dict[tuple[str, str, str, int], list[dict[str, object]]] = {}
    for row in rows:
        groups.setdefault((row["data"], row["method"], row["setting"], row["bits"]), []).append(row)
    summary = []
    for (data, method, setting, bits), found in groups.items():
        by_seed = {row["seed"]: row["accuracy"] for row in found}
        values = list(by_seed.values())
        sizes_of_first = {key: found[0][key] for key in ("learnable", "fixed", "stored", "file_bytes")}
        summary.append(
            {
                "data": data,
                "method": method,
                "setting": setting,
                "bits": bits,
                **sizes_of_first,
                "accuracy_mean": round(statistics.fmean(values), 4),
                "accuracy_min": round(min(values), 4),
                "accuracy_max": round(max(values), 4),
            }
        )
    return summary


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of torch")
    parser.add_argument("--out", type=Path, help="JSON file to write; default: benchmarks/results/accuracy.json")
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    began = time.perf_counter()
    rows = []
    for name, epochs in EPOCHS.items():
        for seed in SEEDS[:1] if arguments.quick else SEEDS:
            rows += measure(name, seed, 2 if arguments.quick else epochs)
    out = arguments.out or (None if arguments.quick else Path(__file__).parent / "results" / "accuracy.json")
    if out is None:
        return
    report = {
        "benchmark": "accuracy",
        **about(("torch", "scikit-learn", "numpy")),
        "threads": arguments.threads,
        "settings": {"seeds": SEEDS, "bits": [32, *BITS], "epochs": EPOCHS, "batch": BATCH, "lr": LR, "widths": WIDTHS},
        "duration_s": round(time.perf_counter() - began, 1),
        "summary": summarise(rows),
        "rows": rows,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
