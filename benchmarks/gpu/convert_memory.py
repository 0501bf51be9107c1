"""Time and peak memory of `sketch_` by model size, with and without a memory limit.

    python benchmarks/gpu/convert_memory.py llama-1b --memory none 8GB
    python benchmarks/gpu/convert_memory.py llama-7b --memory none 30GB
    python benchmarks/gpu/convert_memory.py bert-base vgg --device cpu --memory none 1GB
    python benchmarks/gpu/convert_memory.py bert-base llama-1b llama-7b --sizes

Models are of these configurations with random weights, and plain torch. Every case runs in a process by itself, and
prints a line of JSON; at the end comes one that compares each case with the first of its model. Peaks are of tensors on
CUDA, and of the whole process on a CPU. --sizes prints what conversion holds by its own account, and runs nothing.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention, silu

sys.path.insert(0, str(Path(__file__).parents[2]))
import panther as pr
from panther.convert.layers import find_units
from panther.convert.survey import bytes_on, sizes_of, survey

GIB = 2**30


@dataclass(frozen=True)
class Configuration:
    """Sizes of a transformer, and of the calibration inputs."""

    layers: int
    width: int
    heads: int
    key_heads: int
    inner: int
    vocabulary: int
    causal: bool = True
    batches: int = 16
    rows: int = 2
    tokens: int = 512


CONFIGURATIONS = {
    "tiny": Configuration(2, 128, 4, 2, 352, 500, batches=2, tokens=32),
    "llama-1b": Configuration(22, 2048, 32, 4, 5632, 32000),
    "llama-7b": Configuration(32, 4096, 32, 32, 11008, 32000),
    "bert-base": Configuration(12, 768, 12, 12, 3072, 0, causal=False, batches=4, rows=16, tokens=64),
}
# the first linear layer of vgg's classifier, behind 256 rows
VGG = (25088, 4096)


class Attention(nn.Module):
    """With rotary positions where it is causal."""

    def __init__(self, sizes: Configuration) -> None:
        super().__init__()
        self.sizes, self.head = sizes, sizes.width // sizes.heads
        bias = not sizes.causal
        self.q_proj = nn.Linear(sizes.width, sizes.width, bias=bias)
        self.k_proj = nn.Linear(sizes.width, sizes.key_heads * self.head, bias=bias)
        self.v_proj = nn.Linear(sizes.width, sizes.key_heads * self.head, bias=bias)
        self.o_proj = nn.Linear(sizes.width, sizes.width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            each.unflatten(-1, (-1, self.head)).transpose(1, 2)
            for each in (self.q_proj(x), self.k_proj(x), self.v_proj(x))
        )
        if self.sizes.causal:
            q, k = _rotated(q), _rotated(k)
        shared = self.sizes.key_heads != self.sizes.heads
        y = scaled_dot_product_attention(q, k, v, is_causal=self.sizes.causal, enable_gqa=shared)
        out: Tensor = self.o_proj(y.transpose(1, 2).flatten(2))
        return out


def _rotated(x: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    rates = 10000.0 ** (-torch.arange(half, device=x.device) / half)
    angles = torch.arange(x.shape[-2], device=x.device).unsqueeze(1) * rates
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)


class Block(nn.Module):
    """Attention and a perceptron, gated where it is causal."""

    def __init__(self, sizes: Configuration) -> None:
        super().__init__()
        norm = nn.RMSNorm if sizes.causal else nn.LayerNorm
        self.attention_norm, self.inner_norm = norm(sizes.width), norm(sizes.width)
        self.attention = Attention(sizes)
        bias = not sizes.causal
        self.gate_proj = nn.Linear(sizes.width, sizes.inner, bias=bias) if sizes.causal else None
        self.up_proj = nn.Linear(sizes.width, sizes.inner, bias=bias)
        self.down_proj = nn.Linear(sizes.inner, sizes.width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x))
        y = self.inner_norm(x)
        inner = gelu(self.up_proj(y)) if self.gate_proj is None else silu(self.gate_proj(y)) * self.up_proj(y)
        out: Tensor = x + self.down_proj(inner)
        return out


class Transformer(nn.Module):
    """A Llama, or an encoder as BERT where it is not causal."""

    def __init__(self, sizes: Configuration) -> None:
        super().__init__()
        self.embedding = nn.Embedding(sizes.vocabulary or 30522, sizes.width)
        self.blocks = nn.ModuleList(Block(sizes) for _ in range(sizes.layers))
        self.norm = nn.RMSNorm(sizes.width) if sizes.causal else nn.LayerNorm(sizes.width)
        self.head = nn.Linear(sizes.width, sizes.vocabulary, bias=False) if sizes.vocabulary else nn.Identity()

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids)
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.head(self.norm(x))
        return out


def built(name: str, device: str) -> tuple[nn.Module, list[Tensor]]:
    """A model with random weights and its calibration inputs."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    torch.set_default_dtype(torch.bfloat16 if device != "cpu" else torch.float32)
    with torch.device(device):
        if name == "vgg":
            model: nn.Module = nn.Sequential(nn.Linear(*VGG), nn.ReLU(), nn.Linear(VGG[1], 10))
        else:
            model = Transformer(CONFIGURATIONS[name])
    torch.set_default_dtype(torch.float32)
    if name == "vgg":
        rows = torch.randn(256, VGG[0], generator=generator).relu_()
        return model.eval(), [rows.to(next(model.parameters()).dtype)]
    sizes = CONFIGURATIONS[name]
    ids = (
        torch.randint(0, sizes.vocabulary or 30522, (sizes.rows, sizes.tokens), generator=generator)
        for _ in range(sizes.batches)
    )
    return model.eval(), list(ids)


def measure(name: str, device: str, memory: str, probes: int) -> dict[str, Any]:
    """Convert a model once."""
    model, batches = built(name, device)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    held = (
        torch.cuda.memory_allocated() if device != "cpu" else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    )
    last, steps = time.perf_counter(), dict[str, float]()

    def step(what: str, done: int, total: int) -> None:
        nonlocal last
        if device != "cpu":
            torch.cuda.synchronize()
        now = time.perf_counter()
        steps[what], last = steps.get(what, 0.0) + now - last, now
        if done == total:
            print(f"{name} memory={memory}: {what} {done}/{total}, {now - started:.0f} s", file=sys.stderr, flush=True)

    started, cpu = last, time.process_time()
    report = pr.sketch_(
        model, ratio=0.75, calibration=batches, probes=probes, memory=None if memory == "none" else memory, on_step=step
    )
    seconds = time.perf_counter() - started
    peak = (
        torch.cuda.max_memory_allocated()
        if device != "cpu"
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    )
    return {
        "model": name,
        "parameters": parameters,
        "device": torch.cuda.get_device_name() if device != "cpu" else f"CPU, {torch.get_num_threads()} threads",
        "memory": memory,
        "probes": probes,
        "seconds": round(seconds, 1),
        "cpu_seconds": round(time.process_time() - cpu, 1),
        "seconds_by_step": {what: round(value, 1) for what, value in steps.items()},
        "model_gib": round(held / GIB, 2),
        "peak_gib": round(peak / GIB, 2),
        "output_error": report.output_error,
        "ranks": [layer.rank for layer in report.layers],
        "notes": list(report.notes),
    }


def sizes(name: str, probes: int) -> dict[str, Any]:
    """GiB that the conversion of a model without values holds, as it is planned."""
    meta = torch.device("meta")
    with meta:
        model = Transformer(CONFIGURATIONS[name]).eval()
        ids = torch.zeros(1, 8, dtype=torch.long)
    units = find_units(model, None, ())
    surveyed, sizing = survey(model, units, ids, None, derivatives=False), partial(sizes_of, probes=probes)
    held = {
        "full_moments": sum(8 * (unit.in_features**2 + unit.out_features**2) for unit in units),
        "one_pass": bytes_on(meta, units, sizing, surveyed),
        "one_layer": max(bytes_on(meta, [unit], sizing, surveyed) for unit in units),
        "factors": sum(sizing(unit).kept for unit in units),
    }
    return {"model": name, **{what: round(size / GIB, 2) for what, size in held.items()}}


def compared(cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each case beside the first of its model: the same ranks and error, for which memory."""
    found = []
    for case in cases:
        first = next(other for other in cases if other["model"] == case["model"])
        pairs = list(zip(case["ranks"], first["ranks"], strict=True))
        found.append(
            {
                "model": case["model"],
                "memory": case["memory"],
                "peak_gib": case["peak_gib"],
                "seconds": case["seconds"],
                "same_ranks": f"{sum(a == b for a, b in pairs)} of {len(pairs)}",
                "output_error_by_first": case["output_error"] / first["output_error"],
            }
        )
    return found


def main() -> None:
    """Run every case in a process by itself."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", choices=[*CONFIGURATIONS, "vgg"])
    parser.add_argument("--memory", nargs="+", default=["none"], help="none, or sizes such as 8GB")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--probes", type=int, default=8)
    parser.add_argument("--sizes", action="store_true", help="print what conversion holds, and run nothing")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(measure(given.models[0], given.device, given.memory[0], given.probes)))
        return
    if given.sizes:
        for name in given.models:
            print(json.dumps(sizes(name, given.probes)))
        return
    cases = []
    for name in given.models:
        for memory in given.memory:
            command = [sys.executable, __file__, name, "--one", "--memory", memory, "--device", given.device]
            done = subprocess.run(
                [*command, "--probes", str(given.probes)], stdout=subprocess.PIPE, text=True, check=False
            )
            if done.returncode != 0:
                print(json.dumps({"model": name, "memory": memory, "failed": done.returncode}), flush=True)
                continue
            cases.append(json.loads(done.stdout.splitlines()[-1]))
            print(json.dumps(cases[-1], ensure_ascii=False), flush=True)
    print(json.dumps(compared(cases)))


if __name__ == "__main__":
    main()
