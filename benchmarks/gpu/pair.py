"""A training step of SKLinear against two nn.Linear of the same rank, alone and in a transformer.

    python benchmarks/gpu/pair.py --commit "$(git rev-parse HEAD)" --output benchmarks/results/gpu_pair.json

The pair is ``nn.Linear(d_in, 2Lk, bias=False)`` and ``nn.Linear(2Lk, d_out)`` with the factors of the sketched layer as
its weights, so both compute the same function: outputs and gradients of x are first compared with float64. The
parameters are float32; bfloat16 uses autocast. A step of a layer is forward and backward: called with a filled device
queue, and replayed as a CUDA graph, which leaves only device time. The transformer's step includes the optimizer.
``kernels`` and ``products`` are the two implementations of SKLinear; ``ours`` chooses between them.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from provenance import about
from torch import Tensor, nn
from train import Run, as_graph, measure, median_us

from panther.nn import SKLinear
from panther.nn.kernels import cuda

SHAPES = ((1024, 1024), (2048, 2048), (2048, 8192), (8192, 2048), (4096, 4096), (8192, 8192))
RANKS = ((2, 64), (4, 128))
ROWS = (512, 2048, 8192, 32768)
MODES = ("float32", "tf32", "bfloat16")
TOLERANCE = {"float32": 1e-5, "tf32": 2e-3, "bfloat16": 1.5e-2}
SIDES = ("ours", "pair", "kernels", "products")
COMPILED = ((2048, 2048), (2048, 8192), (8192, 2048), (4096, 4096))
BACKENDS = {"ours": "auto", "kernels": "kernels", "products": "products"}
# the transformer
WIDTH, HIDDEN, HEADS, BLOCKS = 2048, 8192, 16, 8
BATCHES = ((8, 1024), (2, 1024), (1, 512))
STEPS = 10


def pair_of(layer: SKLinear) -> nn.Sequential:
    """Two nn.Linear that compute the same function as the layer."""
    terms = 2 * layer.num_terms
    A = torch.cat([layer.S1s, layer.U2s]).detach().transpose(0, 1).flatten(1)
    B = torch.cat([layer.U1s, layer.S2s]).detach().flatten(0, 1)
    down = nn.Linear(A.shape[0], A.shape[1], bias=False, device=A.device)
    up = nn.Linear(B.shape[0], B.shape[1], device=A.device)
    with torch.no_grad():
        down.weight.copy_(A.t() / terms)
        up.weight.copy_(B.t())
        up.bias.copy_(layer.bias)
    return nn.Sequential(down, up)


def autocast(mode: str) -> Any:
    return torch.autocast("cuda", dtype=torch.bfloat16, enabled=mode == "bfloat16")


def set_precision(mode: str) -> None:
    torch.backends.cuda.matmul.fp32_precision = "tf32" if mode == "tf32" else "ieee"


class Layer:
    """A layer, its pair, and inputs of one size."""

    def __init__(self, shape: tuple[int, int], rank: tuple[int, int], rows: int, mode: str) -> None:
        generator = torch.Generator(device="cuda").manual_seed(0)
        self.layer = SKLinear(*shape, *rank, device="cuda", generator=generator)
        self.pair, self.mode = pair_of(self.layer), mode
        dtype = torch.bfloat16 if mode == "bfloat16" else torch.float32
        self.x, self.grad = (torch.randn(rows, size, device="cuda", generator=generator).to(dtype) for size in shape)
        self.x.requires_grad_()

    def step(self, side: str, *, compiled: bool = False) -> Run:
        module: Any = self.pair if side == "pair" else self.layer
        parameters = [self.x, *module.parameters()]
        module = torch.compile(module, dynamic=False) if compiled else module

        def step() -> tuple[Tensor, ...]:
            with autocast(self.mode), cuda.backend(BACKENDS.get(side, "auto")):
                y = module(self.x)
            return (y, *torch.autograd.grad(y, parameters, self.grad))

        return step

    def prove_parity(self, runs: dict[str, Run]) -> dict[str, float]:
        """The largest relative error of y and of the gradient of x, of each side."""
        with torch.no_grad():
            x, grad = self.x.double(), self.grad.double()
            down, up = (part.weight.double() for part in self.pair)
            expected = x @ down.t() @ up.t() + self.layer.bias.double(), grad @ up @ down
        errors = {}
        for side, run in runs.items():
            found = run()[:2]  # type: ignore[index]
            errors[side] = max(
                ((a.double() - b).norm() / b.norm()).item() for a, b in zip(found, expected, strict=True)
            )
            if not errors[side] <= TOLERANCE[self.mode]:
                raise SystemExit(f"{side} is off by {errors[side]:.2g} in {self.mode} for {self.layer}")
        return {side: float(f"{error:.2g}") for side, error in errors.items()}


def layer_rows(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    found = []
    for mode, rows, rank, shape in itertools.product(arguments.modes, arguments.rows, RANKS, SHAPES):
        set_precision(mode)
        layer = Layer(shape, rank, rows, mode)
        ways = {"called": False, "graph": False}
        if mode == "bfloat16" and rank == RANKS[0] and shape in COMPILED and rows in arguments.compiled_rows:
            ways["compiled"] = True
        for way, compiled in ways.items():
            sides = ("ours", "pair", "products") if compiled else SIDES
            runs = {side: layer.step(side, compiled=compiled) for side in sides}
            errors = layer.prove_parity(runs)
            if way == "graph":
                runs = {side: as_graph(run) for side, run in runs.items()}
            median = {side: median_us(times) for side, times in measure(runs).items()}
            row = {
                "shape": shape, "num_terms": rank[0], "low_rank": rank[1], "rows": rows, "mode": mode, "way": way,
                "median_us": median, "pair_over_ours": round(median["pair"] / median["ours"], 3),
                "max_relative_error": errors,
            }  # fmt: skip
            found.append(row)
            sides_us = " ".join(f"{side} {us:.0f}" for side, us in median.items())
            print(f"{mode} {way} {shape} L{rank[0]}k{rank[1]} x {rows}: {sides_us}", flush=True)
            del runs
        del layer
        gc.collect()
        torch.cuda.empty_cache()
        torch.compiler.reset()
    return found


class Block(nn.Module):
    """A block of the transformer; ``linear(d_in, d_out)`` makes its layers."""

    def __init__(self, linear: Any, *, width: int = WIDTH, hidden: int = HIDDEN, heads: int = HEADS) -> None:
        super().__init__()
        self.heads = heads
        self.norm, self.second_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value, self.out = (linear(width, width) for _ in range(4))
        self.up, self.down = linear(width, hidden), linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        heads = [
            part(h).view(*h.shape[:2], self.heads, -1).transpose(1, 2) for part in (self.query, self.key, self.value)
        ]
        attended = nn.functional.scaled_dot_product_attention(*heads, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        return x + self.down(nn.functional.gelu(self.up(self.second_norm(x))))


def transformers(layers: int) -> dict[str, nn.Module]:
    """The transformer of sketched layers, of pairs with the same weights, and of dense layers."""
    torch.manual_seed(0)
    with torch.device("cuda"):
        ours = nn.Sequential(*[Block(lambda a, b: SKLinear(a, b, *RANKS[0])) for _ in range(layers)])
        pairs = nn.Sequential(*[Block(nn.Linear) for _ in range(layers)])
        dense = nn.Sequential(*[Block(nn.Linear) for _ in range(layers)])
    for block, twin in zip(ours, pairs, strict=True):
        for name in ("query", "key", "value", "out", "up", "down"):
            setattr(twin, name, pair_of(getattr(block, name)))
    return {"ours": ours, "pair": pairs, "dense": dense}


class Training:
    """Steps of one transformer."""

    def __init__(self, model: nn.Module, x: Tensor, target: Tensor, backend: str, *, compiled: bool) -> None:
        self.model = model
        if compiled:
            for block in model.children():
                block.compile(dynamic=False)
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
        self.x, self.target, self.backend = x, target, backend

    def __call__(self) -> Tensor:
        with cuda.backend(self.backend), autocast("bfloat16"):
            loss = nn.functional.mse_loss(self.model(self.x).float(), self.target)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach()


def device_ms(step: Training) -> float:
    """Total kernel time of a step by the profiler, in ms."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in range(3):
            step()
        torch.cuda.synchronize()
    return round(sum(event.self_device_time_total for event in profile.key_averages()) / 3000, 2)


def transformer_rows(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    set_precision("tf32")
    found = []
    for batch, length in arguments.batches:
        x, target = (torch.randn(batch, length, WIDTH, device="cuda") for _ in range(2))
        for compiled in (False, True):
            models = transformers(BLOCKS)
            sides: dict[str, tuple[nn.Module, str]] = {side: (model, "auto") for side, model in models.items()}
            if not compiled:
                sides |= {name: (transformers(BLOCKS)["ours"], name) for name in ("kernels", "products")}
            steps = {
                side: Training(model, x, target, backend, compiled=compiled) for side, (model, backend) in sides.items()
            }
            begun = time.perf_counter()
            losses = {side: [float(step()) for _ in range(3)] for side, step in steps.items()}
            print(f"first steps: {time.perf_counter() - begun:.0f} s", flush=True)
            first = losses["pair"][0]
            off = {side: abs(loss[0] - first) / first for side, loss in losses.items() if side != "dense"}
            if max(off.values()) > 1e-3:
                raise SystemExit(f"the first losses differ: {losses}")
            times: dict[str, list[float]] = {side: [] for side in steps}
            for _ in range(arguments.rounds):
                for side, step in steps.items():
                    torch.cuda.synchronize()
                    begun = time.perf_counter()
                    for _ in range(STEPS):
                        step()
                    torch.cuda.synchronize()
                    times[side].append((time.perf_counter() - begun) / STEPS)
            peaks = {}
            for side, step in steps.items():
                torch.cuda.reset_peak_memory_stats()
                before = torch.cuda.memory_allocated()
                step()
                torch.cuda.synchronize()
                peaks[side] = round((torch.cuda.max_memory_allocated() - before) / 2**20)
            median = {side: median_us(values) / 1000 for side, values in times.items()}
            row = {
                "batch": batch, "length": length, "way": "compiled" if compiled else "eager",
                "median_ms": {side: round(value, 2) for side, value in median.items()},
                "device_ms": {side: device_ms(step) for side, step in steps.items()},
                "step_peak_mib": peaks,
                "pair_over_ours": round(median["pair"] / median["ours"], 3),
                "first_losses": {side: round(loss[0], 6) for side, loss in losses.items()},
            }  # fmt: skip
            found.append(row)
            print(json.dumps(row), flush=True)
            del models, sides, steps, step
            gc.collect()
            torch.cuda.empty_cache()
            torch.compiler.reset()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--commit", default="unknown", help="of the checkout, for the record")
    parser.add_argument("--output", type=Path, required=True, help="JSON to write")
    parser.add_argument("--modes", nargs="+", default=MODES, choices=MODES, help="of the layers; all when not given")
    parser.add_argument("--rows", type=int, nargs="*", default=ROWS, help="of the layers; all when not given")
    parser.add_argument("--compiled-rows", type=int, nargs="*", default=[8192], help="of the compiled layers")
    parser.add_argument("--batches", type=int, default=len(BATCHES), help="of the transformer, largest first")
    parser.add_argument("--rounds", type=int, default=7, help="of the transformer")
    arguments = parser.parse_args()
    arguments.batches = BATCHES[: arguments.batches]
    warnings.simplefilter("ignore")
    # a process of one cell compiles kernels for it at once; here all cells share a process
    cuda.FIRST_KINDS = sys.maxsize
    result = about("gpu_pair", arguments.commit)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    for part, rows_of in (("transformer", transformer_rows), ("layers", layer_rows)):
        result[part] = rows_of(arguments)
        # after each part, so that a run that is cut short leaves what it has
        arguments.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
