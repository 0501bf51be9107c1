"""Training recipes for sketched layers: learning rates, clipping, rates by group, growth, and a converted start.

One network, 784 → 512 → 256 → 10 on digits, its hidden layers sketched at L = 2, k = 32, three seeds. Each line changes
one thing of the recipe of bench_accuracy.py (Adam at 2e-3, cosine, clipping at 1, batches of 64, 30 epochs).

    python benchmarks/bench_recipe.py            about two minutes on one core
    python benchmarks/bench_recipe.py --quick    one seed, two epochs: a smoke test, not a measurement
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader

sys.path.insert(0, str(Path(__file__).parent))

from bench_accuracy import BATCH, LR, SEEDS, network, sizes, sketched
from serving.machine import about

import panther as pr
from panther.nn import ProgressiveSKLinear
from panther.train import evaluate, fit, load_digits
from panther.train.data import Dataset

L, K, EPOCHS = 2, 32, 30
RATES = (5e-4, 1e-3, 2e-3, 4e-3, 8e-3)


class Run:
    """One seed: data, and training from it."""

    def __init__(self, seed: int, epochs: int) -> None:
        self.data: Dataset = load_digits(seed=seed)
        self.seed, self.epochs = seed, epochs

    def fresh(self, make) -> nn.Sequential:
        torch.manual_seed(self.seed)
        return network(make, 784, 10)

    def batches(self) -> DataLoader:
        order = torch.Generator().manual_seed(self.seed)
        return DataLoader(self.data.train, batch_size=BATCH, shuffle=True, generator=order)

    def score(self, model: nn.Module) -> float:
        return evaluate(model, DataLoader(self.data.test, batch_size=512))

    def train(self, model: nn.Module, **options) -> float:
        options = {"epochs": self.epochs, "lr": LR, **options}
        fit(model, self.batches(), **options)
        return self.score(model)

    def grow(self) -> float:
        """From L = 1, k = 8 by two doublings, after a quarter and after half of the epochs; one optimiser for all."""

        def make(d_in: int, d_out: int) -> nn.Module:
            return ProgressiveSKLinear(d_in, d_out, initial_terms=1, max_terms=L, initial_rank=8, max_rank=K)

        model = self.fresh(make)
        optimizer = torch.optim.Adam(model.parameters(), lr=LR)

        def after(result) -> None:
            if result.epoch in (max(1, self.epochs // 4), max(1, self.epochs // 2)):
                for layer in model:
                    if isinstance(layer, ProgressiveSKLinear):
                        layer.increase_complexity(optimizer)

        accuracy = self.train(model, optimizer=optimizer, on_epoch=after)
        grown = [(layer.current_layer.num_terms, layer.current_layer.low_rank) for layer in (model[0], model[2])]
        if self.epochs >= 4 and grown != [(L, K)] * 2:
            raise SystemExit(f"the layers grew to {grown}, not to {(L, K)}")
        return accuracy

    def results(self):
        """(what was changed, accuracy) of each line."""
        for lr in RATES:
            yield f"lr {lr:g}", self.train(self.fresh(sketched(L, K)), lr=lr)
        for lr in RATES:
            yield f"dense, lr {lr:g}", self.train(self.fresh(nn.Linear), lr=lr)
        for lr in (LR, RATES[-1]):
            yield f"lr {lr:g}, no clipping", self.train(self.fresh(sketched(L, K)), lr=lr, clip_norm=None)
        yield "constant rate", self.train(self.fresh(sketched(L, K)), schedule="constant")
        for factor in (0.5, 2.0):
            model = self.fresh(sketched(L, K))
            groups = pr.param_groups(model, sketch_lr=factor * LR, lr=LR)
            yield f"S at {factor:g} times the rate", self.train(model, optimizer=torch.optim.Adam(groups))
        yield "grown from L=1, k=8", self.grow()
        dense = self.fresh(nn.Linear)
        self.train(dense)
        ratio = sizes(self.fresh(sketched(L, K)))["stored"] / sizes(dense)["stored"]
        pr.sketch_(dense, ratio=ratio, calibration=self.data.train_x[:512].split(64))
        yield "converted from the trained dense network", self.score(dense)
        yield "… and trained on for 5 epochs at 5e-4", self.train(dense, epochs=5, lr=5e-4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of torch")
    parser.add_argument("--out", type=Path, help="JSON file to write; default: benchmarks/results/recipe.json")
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    began = time.perf_counter()
    found: dict[str, list[float]] = {}
    for seed in SEEDS[:1] if arguments.quick else SEEDS:
        for what, accuracy in Run(seed, 2 if arguments.quick else EPOCHS).results():
            found.setdefault(what, []).append(accuracy)
            print(f"seed {seed}  {what:<44}{accuracy:.4f}", flush=True)
    out = arguments.out or (None if arguments.quick else Path(__file__).parent / "results" / "recipe.json")
    if out is None:
        return
    rows = [
        {
            "what": what,
            "accuracy_mean": round(statistics.fmean(values), 4),
            "accuracy_min": round(min(values), 4),
            "accuracy_max": round(max(values), 4),
        }
        for what, values in found.items()
    ]
    report = {
        "benchmark": "recipe",
        **about(("torch", "scikit-learn", "numpy")),
        "threads": arguments.threads,
        "settings": {"num_terms": L, "low_rank": K, "seeds": SEEDS, "epochs": EPOCHS, "batch": BATCH, "lr": LR},
        "duration_s": round(time.perf_counter() - began, 1),
        "rows": rows,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
