"""Mixtures of experts: error of the conversion, a shared basis beside one for each expert, and the files' speed.

    python benchmarks/bench_experts.py --out benchmarks/results/experts.json

A block of 8 experts, of which each row takes 2, is trained on scikit-learn's digits; accuracy is on rows that neither
training nor calibration saw. Timed is a small Mixtral of random weights as transformers makes it, exported with packed
experts, with opened ones, and sketched; the first two are compared first. Takes two minutes or so on one core.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
import torch
import transformers
from serving.machine import about
from sklearn.datasets import load_digits
from torch import Tensor, nn

import panther as pr
from panther.convert.opened import opened
from panther.convert.swap import Swap
from panther.export import export_onnx, ort
from panther.export.ort import Target
from panther.export.planning.measure import clock_of, median_us, runner
from panther.linalg.whitening import damped, whitened_svd

EXPERTS, WIDTH, INNER, SEEDS, RATIOS = 8, 64, 128, (0, 1, 2), (0.5, 0.35)
TOKENS = (1, 16, 128)
TOLERANCE = 1e-4


class Experts(nn.Module):
    """As transformers packs them."""

    def __init__(self) -> None:
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.randn(EXPERTS, 2 * INNER, WIDTH) / WIDTH**0.5)
        self.down_proj = nn.Parameter(torch.randn(EXPERTS, WIDTH, INNER) / INNER**0.5)
        self.act_fn = nn.SiLU()

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """The sum over the chosen experts."""
        y = torch.zeros_like(hidden_states)
        for e in range(EXPERTS):
            rows, place = (top_k_index == e).nonzero(as_tuple=True)
            gate, up = (hidden_states[rows] @ self.gate_up_proj[e].t()).chunk(2, dim=-1)
            out = (self.act_fn(gate) * up) @ self.down_proj[e].t()
            y = y.index_add(0, rows, out * top_k_weights[rows, place, None])
        return y


class Classifier(nn.Module):
    """A layer, a mixture, and a layer to the classes."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.router, self.experts = nn.Linear(64, WIDTH), nn.Linear(WIDTH, EXPERTS, bias=False), Experts()
        self.out = nn.Linear(WIDTH, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        h = self.into(x)
        shares, chosen = self.router(h).softmax(-1).topk(2)
        return self.out(h + self.experts(h, chosen, shares))


def trained(x: Tensor, y: Tensor, seed: int) -> Classifier:
    """Adam, 20 passes over the rows."""
    torch.manual_seed(seed)
    model = Classifier()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for _ in range(20):
        for batch in torch.randperm(len(x)).split(50):
            loss = nn.functional.cross_entropy(model(x[batch]), y[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model.eval()


@torch.no_grad()
def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """In percent."""
    return round((model(x).argmax(1) == y).double().mean().item() * 100, 2)


def of_classifier(seed: int) -> dict[str, Any]:
    """One classifier, converted with and without calibration, and its matrices with a basis of each kind."""
    raw = load_digits()
    order = torch.randperm(len(raw.target), generator=torch.Generator().manual_seed(0))
    x, y = (torch.tensor(raw.data, dtype=torch.float32) / 8 - 1)[order], torch.tensor(raw.target)[order]
    model = trained(x[:1300], y[:1300], seed)
    rows = []
    for ratio in RATIOS:
        weights, converted = copy.deepcopy(model), copy.deepcopy(model)
        pr.sketch_(weights, ratio=ratio, skip=["into", "router", "out"])
        report = pr.sketch_(converted, ratio=ratio, skip=["into", "router", "out"], calibration=x[:500].split(100))
        rows.append(
            {
                "ratio": ratio,
                "original": accuracy(model, x[1300:], y[1300:]),
                "weight_svd": accuracy(weights, x[1300:], y[1300:]),
                "sketch": accuracy(converted, x[1300:], y[1300:]),
                "output_error": report.output_error,
            }
        )
    return {"seed": seed, "accuracy": rows, "bases": bases(model, x[:500], x[500:1300])}


@torch.no_grad()
def bases(model: Classifier, fitted: Tensor, held_out: Tensor) -> list[dict[str, Any]]:
    """‖Y - Ŷ‖ / ‖Y‖ over the routed rows of all experts, on held-out rows, at the same stored entries."""
    seen, later = (routed(model, x) for x in (fitted, held_out))
    found = []
    for name, side in (("gate_up", "input"), ("down", "output")):
        W = [layer.double() for layer in getattr(model.experts, f"{name}_proj")]
        pooled = cov(torch.cat(seen[name]))
        covariances = [cov(rows) if len(rows) else pooled for rows in seen[name]]
        d_out, d_in = W[0].shape
        for ratio in RATIOS:
            stored = ratio * EXPERTS * d_out * d_in
            own = int(stored / (EXPERTS * (d_in + d_out)))
            each = [cut(M, C, own) for M, C in zip(W, covariances, strict=True)]
            if side == "input":
                shared = int(stored / (d_in + EXPERTS * d_out))
                joint = cut(torch.cat(W), pooled, shared).chunk(EXPERTS)
            else:
                shared = int(stored / (d_out + EXPERTS * d_in))
                U = torch.linalg.svd(
                    torch.cat([M @ torch.linalg.cholesky(C) for M, C in zip(W, covariances, strict=True)], 1)
                )
                joint = [U[0][:, :shared] @ (U[0][:, :shared].t() @ M) for M in W]
            found.append(
                {
                    "matrix": name,
                    "ratio": ratio,
                    "rank_of_each": own,
                    "rank_shared": shared,
                    "error_of_each": lost(W, each, later[name]),
                    "error_shared": lost(W, list(joint), later[name]),
                }
            )
    return found


def routed(model: Classifier, x: Tensor) -> dict[str, list[Tensor]]:
    """The rows that each matrix of each expert sees."""
    network = copy.deepcopy(model)
    widths = {"gate_up": WIDTH, "down": INNER}
    found = {name: [torch.zeros(0, width, dtype=torch.float64)] * EXPERTS for name, width in widths.items()}
    with Swap(network, opened(network)):
        for name, rows in found.items():
            for e, layer in enumerate(network.experts.get_submodule(name).children()):
                layer.register_forward_hook(lambda _, args, __, rows=rows, e=e: rows.__setitem__(e, args[0].double()))
        network(x)
    return found


def cov(rows: Tensor) -> Tensor:
    """Damped, as a conversion does."""
    C = damped(rows.t() @ rows / len(rows), 1e-4 + 0.1 * rows.shape[1] / len(rows))
    if C is None:
        raise SystemExit("an expert saw only zeros")
    return C


def cut(W: Tensor, C: Tensor, rank: int) -> Tensor:
    """The best matrix of a rank for inputs of a covariance."""
    spectrum = whitened_svd(W, C)
    return (spectrum.left[:, :rank] @ spectrum.right[:rank]).t()


def lost(W: list[Tensor], found: list[Tensor], rows: list[Tensor]) -> float:
    """Relative, over all rows."""
    parts = [
        (((x @ (M - N).t()).square().sum()), (x @ M.t()).square().sum()) for M, N, x in zip(W, found, rows, strict=True)
    ]
    return float((sum(part for part, _ in parts) / sum(whole for _, whole in parts)) ** 0.5)


def speed() -> dict[str, Any]:
    """A layer of Mixtral in a file, with experts of each kind, in turn."""
    torch.manual_seed(0)
    config = transformers.MixtralConfig(
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=128,
        num_local_experts=EXPERTS,
        use_cache=False,
    )
    models = {"packed": transformers.MixtralForCausalLM(config).eval()}
    models["opened"], models["sketched"] = (copy.deepcopy(models["packed"]) for _ in range(2))
    Swap(models["opened"], opened(models["opened"])).do()
    calibration = [{"input_ids": torch.randint(0, 128, (8, 32))} for _ in range(2)]
    pr.sketch_(models["sketched"], ratio=0.5, calibration=calibration, probes=2)
    target, sessions = Target("cpu", 1), {}
    with tempfile.TemporaryDirectory() as folder:
        for name, model in models.items():
            example, axes = {"input_ids": torch.randint(0, 128, (2, 9))}, {"input_ids": {0: "batch", 1: "sequence"}}
            report = export_onnx(
                model,
                example,
                folder,
                name=name,
                dynamic_axes=axes,
                num_threads=1,
                plan="two_products",
                batch_sizes=(1,),
            )
            sessions[name] = ort.load(report.path, target)
            print(f"exported {name}", flush=True)
        rows = []
        for tokens in TOKENS:
            feeds = {"input_ids": np.random.default_rng(0).integers(0, 128, (1, tokens))}
            packed, other = (sessions[name].run(None, feeds)[0] for name in ("packed", "opened"))
            off = float(np.abs(packed - other).max() / np.abs(packed).max())
            if off > TOLERANCE:
                raise SystemExit(f"opened experts are off by {off}")
            runs = {name: runner(session, feeds, target) for name, session in sessions.items()}
            medians = median_us(runs, budget_s=3, clock=clock_of(target))
            rows.append({"tokens": tokens, "median_us": {name: round(us, 1) for name, us in medians.items()}})
            print(rows[-1], flush=True)
    return {"hidden": 256, "intermediate": 512, "experts": EXPERTS, "ratio": 0.5, "runs": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    classifiers = []
    for seed in SEEDS:
        classifiers.append(of_classifier(seed))
        print(json.dumps(classifiers[-1], indent=1), flush=True)
    timed = speed()
    if arguments.out is not None:
        packages = ("torch", "transformers", "onnxruntime", "scikit-learn")
        result = {**about(packages), "threads": 1, "digits": classifiers, "speed": timed}
        arguments.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        print(f"wrote {arguments.out}")


if __name__ == "__main__":
    main()
