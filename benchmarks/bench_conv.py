"""Conversion and compression of convolutions: the error of a weight, and a network on scikit-learn's digits.

    python benchmarks/bench_conv.py --out benchmarks/results/conv.json

The network has four 3x3 convolutions and is trained here, with and without batch normalization. Accuracy is on rows
that neither training, calibration nor distillation saw; nothing is timed. Takes a minute or two on one core.

    python benchmarks/bench_conv.py --splits --out benchmarks/results/conv_splits.json

measures further ways to split a convolution, see `conv_splits`; `--bits` what 4 bits add to 8.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import conv_splits
import numpy as np
import torch
from serving.machine import about
from sklearn.datasets import load_digits
from torch import Tensor, nn

import panther as pr
from panther.compression import KINDS

SEEDS, RATIOS = (0, 1, 2), (0.5, 0.25)
# max_bytes of compress, as a share of the model
SHARES = (0.25, 0.12, 0.06)
Digits = tuple[Tensor, Tensor, Tensor, Tensor]


def digits() -> Digits:
    """Images and classes to train on, and held out."""
    raw = load_digits()
    order = torch.randperm(len(raw.target), generator=torch.Generator().manual_seed(0))
    x = (torch.tensor(raw.images, dtype=torch.float32).unsqueeze(1) / 8 - 1)[order]
    y = torch.tensor(raw.target)[order]
    return x[:1300], y[:1300], x[1300:], y[1300:]


def network(*, norm: bool) -> nn.Sequential:
    """1 → 32 → 64 → 64 → 128 channels, the mean over the image, 10 classes."""
    layers: list[nn.Module] = []
    for c_in, c_out, stride in ((1, 32, 1), (32, 64, 1), (64, 64, 2), (64, 128, 1)):
        layers.append(nn.Conv2d(c_in, c_out, 3, stride, padding=1, bias=not norm))
        layers += [nn.BatchNorm2d(c_out), nn.ReLU()] if norm else [nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10))


def train(model: nn.Sequential, x: Tensor, y: Tensor, *, epochs: int = 8, rows: int = 50) -> nn.Sequential:
    """Adam with one cycle of the learning rate."""
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=epochs * (len(x) // rows))
    model.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(x)).split(rows):
            loss = nn.functional.cross_entropy(model(x[batch]), y[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval()


@torch.no_grad()
def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """In percent."""
    return round((model(x).argmax(1) == y).double().mean().item() * 100, 2)


@torch.no_grad()
def public_way(model: nn.Module, ratio: float) -> nn.Module:
    """The public package's conversion, by its formula: random signs U, S1 = W Uᵀ, of the same share of each weight."""
    for name, conv in list(model.named_modules()):
        if not isinstance(conv, nn.Conv2d) or conv.in_channels == 1:
            continue
        W = conv.weight.flatten(1)
        low_rank = max(1, int(ratio * W.numel() / (2 * sum(W.shape))))
        layer = pr.nn.SKConv2d.like(conv, 1, low_rank, terms="output")
        layer.U1s.copy_(pr.sketch.sign_sketch(*layer.U1s.shape, low_rank=low_rank))
        layer.S1s.copy_((layer.U1s.flatten(0, 1) @ W).view(layer.S1s.shape))
        if conv.bias is not None:
            layer.bias.copy_(conv.bias)
        model.set_submodule(name, layer)
    return model


def of_weights() -> list[dict[str, float]]:
    """A fresh 64 → 128 convolution by `from_conv`, beside numpy's truncated SVD."""
    torch.manual_seed(0)
    conv = nn.Conv2d(64, 128, 3)
    W = conv.weight.detach().double()
    s = np.linalg.svd(W.flatten(1).numpy(), compute_uv=False)
    rows = []
    for rank in (16, 96):
        row = {"rank": rank, "truncated_svd": float(np.sqrt((s[rank:] ** 2).sum() / (s**2).sum()))}
        for terms in ("output", "input", "both"):
            layer = pr.nn.SKConv2d.from_conv(conv, 1, rank // 2, terms=terms)
            row[terms] = ((layer.dense_weight().double() - W).norm() / W.norm()).item()
            row[f"{terms}_stored"] = layer.parameter_count().stored - 128
        if abs(row["output"] - row["truncated_svd"]) > 1e-4:
            sys.exit(f"from_conv at rank {rank} is off the truncated SVD: {row}")
        rows.append(row)
    return rows


def of_data(model: nn.Sequential, x: Tensor) -> list[dict[str, float]]:
    """The last convolution of a trained network on its own patches: fitted to the weight, and to the data."""
    with torch.no_grad():
        patches = nn.functional.unfold(model[:9](x), 3, padding=1)
    X = patches.transpose(1, 2).flatten(0, 1).double()
    conv = model[9]
    W = conv.weight.detach().double().flatten(1)
    rows = []
    for rank in (16, 96):
        by_weight = pr.nn.SKConv2d.from_conv(conv, 1, rank // 2).dense_weight().detach().double().flatten(1)
        L = torch.linalg.cholesky(X.t() @ X / len(X) + 1e-6 * torch.eye(W.shape[1], dtype=torch.float64))
        U, S, Vh = torch.linalg.svd(W @ L, full_matrices=False)
        by_data = (U[:, :rank] * S[:rank]) @ torch.linalg.solve_triangular(L, Vh[:rank], upper=False, left=False)
        whole = (X @ W.t()).norm()
        rows.append(
            {
                "rank": rank,
                "fitted_to_the_weight": ((X @ (W - by_weight).t()).norm() / whole).item(),
                "fitted_to_the_data": ((X @ (W - by_data).t()).norm() / whole).item(),
            }
        )
    return rows


def of_network(data: Digits, *, norm: bool, seed: int) -> list[dict[str, object]]:
    """One network, converted in every way at every budget."""
    x, y, held_out, classes = data
    torch.manual_seed(seed)
    model = train(network(norm=norm), x, y)
    rows = []
    for ratio in RATIOS:
        weights, converted = copy.deepcopy(model), copy.deepcopy(model)
        pr.sketch_(weights, ratio=ratio)
        report = pr.sketch_(converted, ratio=ratio, calibration=x[:500].split(100))
        row = {
            "batch_norm": norm,
            "seed": seed,
            "ratio": ratio,
            "bytes": round(report.model_bytes_after / report.model_bytes_before, 4),
            "multiply_adds": round(report.after.multiply_adds_per_row / report.before.multiply_adds_per_row, 4),
            "original": accuracy(model, held_out, classes),
            "public_way": accuracy(public_way(copy.deepcopy(model), ratio), held_out, classes),
            "weight_svd": accuracy(weights, held_out, classes),
            "sketch": accuracy(converted, held_out, classes),
        }
        pr.distill_(converted, model, x.split(100), steps=100, progress=False)
        rows.append({**row, "distilled": accuracy(converted, held_out, classes)})
        print(rows[-1], flush=True)
    return rows


def of_budgets(data: Digits, *, norm: bool, seed: int) -> list[dict[str, object]]:
    """One network, compressed to shares of its bytes."""
    x, y, held_out, classes = data
    torch.manual_seed(seed)
    model = train(network(norm=norm), x, y)
    size, rows = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers())), []
    for share in SHARES:
        found = pr.compress(model, calibration=x[:500].split(100), max_bytes=int(share * size))
        rows.append(
            {
                "batch_norm": norm,
                "seed": seed,
                "share": share,
                "bytes": round(found.report.bytes_after / size, 4),
                "output_error": round(found.report.output_error, 4),
                "original": accuracy(model, held_out, classes),
                "compress": accuracy(found.model, held_out, classes),
                "by_kind": found.report.bytes_by_kind,
            }
        )
        print(rows[-1], flush=True)
    return rows


def of_bits(data: Digits, *, norm: bool, seed: int) -> list[dict[str, object]]:
    """One network at shares of its bytes, with and without 4 bits, and by `quantize_`."""
    x, y, held_out, classes = data
    torch.manual_seed(seed)
    model = train(network(norm=norm), x, y)
    size, rows = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers())), []
    original, calibration = accuracy(model, held_out, classes), x[:500].split(100)
    eight = [kind for kind in KINDS if "int4" not in kind]
    for share in (0.16, *SHARES[1:]):
        row: dict[str, object] = {"batch_norm": norm, "seed": seed, "share": share, "original": original}
        for name, kinds in (("with_4_bits", KINDS), ("without", eight)):
            found = pr.compress(model, calibration=calibration, max_bytes=int(share * size), kinds=kinds)
            row[name] = {
                "output_error": round(found.report.output_error, 4),
                "accuracy": accuracy(found.model, held_out, classes),
            }
        rows.append(row)
        print(row, flush=True)
    for weights in ("int8", "int4"):
        small = copy.deepcopy(model)
        report = pr.quantize_(small, calibration=calibration, weights=weights)
        kept = sum(tensor.nbytes for tensor in (*small.parameters(), *small.buffers())) / size
        found_row = {"bytes": round(kept, 4), "output_error": round(report.output_error, 4)}
        found_row |= {"accuracy": accuracy(small, held_out, classes)}
        rows.append({"batch_norm": norm, "seed": seed, "quantize_": weights, "original": original, **found_row})
        print(rows[-1], flush=True)
    return rows


def of_splits(data: Digits, *, norm: bool, seed: int) -> list[dict[str, object]]:
    """The 3x3 convolutions of one network but the first, split in every way."""
    x, y, held_out, _ = data
    torch.manual_seed(seed)
    model, rows = train(network(norm=norm), x, y), []
    for index, conv in enumerate(model):
        if isinstance(conv, nn.Conv2d) and conv.in_channels > 1:
            with torch.no_grad():
                taken = model[:index](torch.cat([x[:400], held_out[:400]]))
                unfolded = nn.functional.unfold(taken, 3, padding=1, stride=conv.stride)
            found = conv_splits.of_layer(conv, unfolded.transpose(1, 2).flatten(0, 1), taken.shape[-1])
            rows += [{"batch_norm": norm, "seed": seed, **row} for row in found]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--splits", action="store_true", help="only the spatial split and Tucker-2, two seeds")
    parser.add_argument("--bits", action="store_true", help="only 4 bits beside 8, two seeds")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    data = digits()
    if arguments.bits:
        bits = [row for norm in (True, False) for seed in SEEDS[:2] for row in of_bits(data, norm=norm, seed=seed)]
        write(arguments.out, {"bits": bits})
        return
    if arguments.splits:
        splits = [row for norm in (True, False) for seed in SEEDS[:2] for row in of_splits(data, norm=norm, seed=seed)]
        write(arguments.out, {"splits": splits})
        return
    weights = of_weights()
    print(weights)
    torch.manual_seed(0)
    patches = of_data(train(network(norm=True), *data[:2]), data[2])
    print(patches)
    cases = [(norm, seed) for norm in (True, False) for seed in SEEDS]
    networks = [row for norm, seed in cases for row in of_network(data, norm=norm, seed=seed)]
    budgets = [row for norm, seed in cases for row in of_budgets(data, norm=norm, seed=seed)]
    write(arguments.out, {"weights": weights, "patches": patches, "digits": networks, "budgets": budgets})


def write(path: Path | None, rows: dict[str, object]) -> None:
    """Write the rows with machine and versions, where a path is given."""
    if path is not None:
        result = {**about(("torch", "numpy", "scikit-learn", "onnxruntime")), "threads": 1, **rows}
        path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        print(f"wrote {path}")


if __name__ == "__main__":
    main()
