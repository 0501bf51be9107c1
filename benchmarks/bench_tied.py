"""Benchmark of heads tied to their embedding: error by choice of the shared factors, held-out loss, and speed.

    python benchmarks/bench_tied.py --out benchmarks/results/tied.json

A small language model with a tied head is trained on Python's reference texts (pydoc's topics, the last tenth held
out). First only its table is replaced at several ranks: by the projection for both uses, for one, for neither, and by
alternating least squares started from the first. Then whole models are converted to byte budgets. Finally the files of
a table and a head, dense and factored, are timed in turn. It takes about five minutes on one core.
"""

from __future__ import annotations

import argparse
import collections
import copy
import json
import pydoc_data.topics
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import torch
from serving.machine import about
from torch import Tensor, nn

import panther as pr
from panther.convert import tied
from panther.convert.calibration import collect
from panther.convert.deviation import Reference
from panther.convert.embedding_candidates import EmbeddingCandidate, weigh_lookups
from panther.convert.embeddings import TABLES
from panther.convert.layers import find_units
from panther.convert.swap import Swap
from panther.export import export_onnx, ort
from panther.export.ort import Target
from panther.export.planning.measure import clock_of, median_us, runner
from panther.linalg.projection import Projection, closest_rows, projections, shared_projections

VOCABULARY, WIDTH, LENGTH, LAYERS, STEPS = 4000, 96, 64, 2, 700
RANKS, SHARES = (16, 32, 48), (0.8, 0.6, 0.5, 0.4)
SWEEPS = 3


class Language(nn.Module):
    """A transformer whose head shares the weight of the embedding."""

    def __init__(self, layers: int = LAYERS) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(VOCABULARY, WIDTH), nn.Linear(WIDTH, VOCABULARY, bias=False)
        nn.init.normal_(self.table.weight, std=0.05)
        self.head.weight = self.table.weight
        self.places = nn.Parameter(torch.randn(LENGTH, WIDTH) * 0.02)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(WIDTH, 4, 2 * WIDTH, 0.0, batch_first=True, norm_first=True)
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, ids: Tensor) -> Tensor:
        """Logits of the next token."""
        h = self.table(ids) + self.places[: ids.shape[1]]
        mask = nn.Transformer.generate_square_subsequent_mask(ids.shape[1])
        for block in self.blocks:
            h = block(h, src_mask=mask, is_causal=True)
        y: Tensor = self.head(self.norm(h))
        return y


class Ends(Language):
    """Only the table and the head."""

    def __init__(self) -> None:
        super().__init__(layers=0)

    def forward(self, ids: Tensor) -> Tensor:
        """Logits of a lookup."""
        y: Tensor = self.head(torch.tanh(self.table(ids)))
        return y


class Text:
    """Tokens of the texts: words, numbers and signs, the most frequent ones."""

    def __init__(self) -> None:
        tokens = re.findall(r"[a-z_]+|[0-9]+|[^\sa-z0-9]", "\n".join(pydoc_data.topics.topics.values()).lower())
        known = collections.Counter(tokens).most_common(VOCABULARY - 1)
        number = {token: i + 1 for i, (token, _) in enumerate(known)}
        self.ids = torch.tensor([number.get(token, 0) for token in tokens])

    def batch(self, rows: int, generator: torch.Generator, *, held_out: bool = False) -> tuple[Tensor, Tensor]:
        """Token ids, and the ids of the next tokens."""
        edge = int(0.9 * len(self.ids))
        low, high = (edge, len(self.ids)) if held_out else (0, edge)
        starts = torch.randint(low, high - LENGTH - 1, (rows,), generator=generator).tolist()
        given, wanted = ([self.ids[at + by : at + by + LENGTH] for at in starts] for by in (0, 1))
        return torch.stack(given), torch.stack(wanted)


def trained(text: Text) -> Language:
    """Train with AdamW for one learning-rate cycle."""
    torch.manual_seed(0)
    model, generator = Language(), torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=STEPS)
    for _ in range(STEPS):
        ids, wanted = text.batch(16, generator)
        loss = nn.functional.cross_entropy(model(ids).flatten(0, 1), wanted.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


@torch.no_grad()
def held_out_loss(model: nn.Module, text: Text) -> float:
    """Cross-entropy per token, in nats."""
    ids, wanted = text.batch(128, torch.Generator().manual_seed(5), held_out=True)
    return round(nn.functional.cross_entropy(model(ids).flatten(0, 1), wanted.flatten()).item(), 4)


def projected(model: Language, calibration: list[Tensor], held_out: list[Tensor]) -> list[dict[str, Any]]:
    """‖y - ŷ‖ / ‖y‖ of held-out outputs, with only the table and the head replaced."""
    network = copy.deepcopy(model).requires_grad_(requires_grad=False)
    (unit,) = find_units(network, lambda _, name: name in ("table", "head"), (), embeddings=TABLES)
    generator = torch.Generator().manual_seed(0)
    (moments,) = collect(network, [unit], calibration, None, probes=4, generator=generator)
    weighing = weigh_lookups(unit, moments)
    if weighing.inputs is None or moments.head is None:
        raise SystemExit("calibration saw nothing")
    uses = tied.uses_of(unit, (weighing.inputs, weighing.outputs), moments.head)
    shared = shared_projections(*uses)
    ways = {
        "both": shared,
        "lookups": projections(*uses[0]),
        "head": projections(*uses[1]),
        "table_svd": closest_rows(unit.weight.t()),
    }
    reference = Reference(network, held_out, None)
    rows = []
    for rank in RANKS:
        found = {}
        for name, way in (ways | {"alternating": alternated(shared, uses, rank)}).items():
            candidate = EmbeddingCandidate(unit, weighing, way, (rank,), way)
            with Swap(network, list(zip(unit.places, candidate.layers(rank), strict=True))):
                found[name] = round(reference.deviation(network).error, 4)
        rows.append({"rank": rank, "output_error": found})
        print(rows[-1], flush=True)
    return rows


def alternated(start: Projection, uses: tuple[tied.Use, tied.Use], rank: int) -> Projection:
    """Alternating least squares: each factor in turn, with the other fixed."""
    (S, C), (G, D) = uses
    L, R = start.left[:, :rank], start.right[:rank]
    for _ in range(SWEEPS):
        L = solved(S, G, R @ C @ R.t(), R @ D @ R.t(), (S @ C + G @ D) @ R.t())
        R = solved(C, D, L.t() @ S @ L, L.t() @ G @ L, (C @ S + D @ G) @ L).t()
    return Projection(L, R, start.energies)


def solved(P: Tensor, Q: Tensor, a: Tensor, b: Tensor, right: Tensor) -> Tensor:
    """Solve P X a + Q X b = right for X, by vectors that diagonalize both a and b."""
    root = torch.linalg.cholesky(a + b)
    inner = torch.linalg.solve_triangular(root, a, upper=False)
    inner = torch.linalg.solve_triangular(root, inner.t(), upper=False)
    values, vectors = torch.linalg.eigh((inner + inner.t()) / 2)
    Z = torch.linalg.solve_triangular(root.t(), vectors, upper=True)
    columns = [
        torch.linalg.solve(P * v + Q * (1 - v), column) for v, column in zip(values, (right @ Z).t(), strict=True)
    ]
    return torch.stack(columns, 1) @ Z.t()


def converted(model: Language, calibration: list[Tensor], text: Text) -> list[dict[str, Any]]:
    """Results of whole models at byte budgets."""
    size = sum(parameter.nbytes for parameter in model.parameters())
    rows = []
    for share in SHARES:
        small = copy.deepcopy(model)
        report = pr.sketch_(small, max_bytes=int(share * size), calibration=calibration, probes=4)
        rank = next(layer.rank for layer in report.layers if layer.name == "table")
        rows.append(
            {
                "bytes": round(report.model_bytes_after / size, 3),
                "rank_of_table": rank,
                "output_error": report.output_error,
                "held_out_loss": held_out_loss(small, text),
            }
        )
        print(rows[-1], flush=True)
    return rows


def speed(model: Language, calibration: list[Tensor]) -> dict[str, Any]:
    """Time the table and the head, dense and factored at half of the parameters, in turn."""
    dense = Ends()
    dense.table.load_state_dict(model.table.state_dict())
    small = copy.deepcopy(dense.eval())
    report = pr.sketch_(small, ratio=0.5, embeddings=True, calibration=calibration[:2], probes=2)
    target, sessions, sizes = Target("cpu", 1), {}, {}
    ids = calibration[0][:1]
    with tempfile.TemporaryDirectory() as folder:
        for name, module in (("dense", dense), ("factored", small)):
            path = export_onnx(module, ids, folder, name=name, num_threads=1, batch_sizes=(1,)).path
            sizes[name], sessions[name] = path.stat().st_size, ort.load(path, target)
        rows = []
        for batch in (1, 16):
            feeds = {"ids": calibration[0][:batch].numpy()}
            runs = {name: runner(session, feeds, target) for name, session in sessions.items()}
            medians = median_us(runs, budget_s=3, clock=clock_of(target))
            rows.append({"batch": batch, "tokens": LENGTH, "median_us": {k: round(us, 1) for k, us in medians.items()}})
            print(rows[-1], flush=True)
    return {"rank": report.layers[0].rank, "file_bytes": sizes, "runs": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    text = Text()
    model, generator = trained(text), torch.Generator().manual_seed(3)
    calibration = [text.batch(16, generator)[0] for _ in range(6)]
    held_out = [text.batch(16, generator, held_out=True)[0] for _ in range(2)]
    loss = held_out_loss(model, text)
    print(f"loss {loss} of {sum(parameter.numel() for parameter in model.parameters()):,} parameters", flush=True)
    found = {
        "model": {"vocabulary": VOCABULARY, "width": WIDTH, "layers": LAYERS, "held_out_loss": loss},
        "projections": projected(model, calibration, held_out),
        "converted": converted(model, calibration, text),
        "speed": speed(model, calibration),
    }
    if arguments.out is not None:
        result = {**about(("torch", "onnxruntime")), "threads": 1, **found}
        arguments.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        print(f"wrote {arguments.out}")


if __name__ == "__main__":
    main()
