"""Sides of bench_compress.py that are made in torch: our formats, and plain low rank and GPTQ beside them."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

import panther as pr
from panther.convert.calibration import collect
from panther.convert.forward import evaluating
from panther.convert.layers import Unit, find_units
from panther.convert.moments import Moments
from panther.linalg.whitening import damped, whitened_svd
from panther.quantize import Blocks
from panther.quantize.blocks import round_to_blocks

# damping, as a share of the second moment of the inputs, as in GPTQ
_DAMPING = 1e-2
# rank of the low-rank sides, as a share of the largest that saves bytes
_SHARE = 0.5
# budgets of `compress` for the whole model
COMPRESSED_BYTES = (18_500_000, 15_000_000, 12_800_000)
OURS: dict[str, dict[str, Any]] = {
    "quantize_, int4": {"weights": "int4"},
    "quantize_, int4, 4-bit embeddings": {"weights": "int4", "embedding_bits": 4},
    "quantize_, int4, correction of rank 16": {"weights": Blocks(correction_rank=16)},
    "quantize_, int4 in blocks of 32": {"weights": Blocks(block_size=32)},
    "quantize_, int4 in blocks of 32, 4-bit embeddings": {"weights": Blocks(block_size=32), "embedding_bits": 4},
    "quantize_, int8 in blocks of 128": {"weights": Blocks(bits=8)},
}


Made = tuple[nn.Module, dict[str, Any]]


def ours(
    model: nn.Module, calibration: list[Any], probes: int, max_error: float
) -> Iterator[tuple[str, Callable[[], Made]]]:
    """The name of each of our sides, and what makes its model and what the benchmark notes of it."""

    def quantized(options: dict[str, Any]) -> Made:
        network = copy.deepcopy(model)
        found = pr.quantize_(network, calibration=calibration, probes=probes, **options)
        kept = [layer.name for layer in found.layers if layer.kind == "linear" and layer.precision == "float32"]
        return network, {"kept_in_float32": kept, "smoothing": found.smoothing}

    def compressed(limit: int) -> Made:
        found = pr.compress(model, calibration=calibration, probes=probes, max_bytes=limit)
        return found.model, {"bytes_by_kind": found.report.bytes_by_kind}

    first = {
        "quantize_": {},
        "quantize_, no smoothing": {"alphas": (0.0,)},
        f"quantize_, max_error={max_error:g}": {"max_error": max_error},
    }
    for side, options in (first | OURS).items():
        yield side, functools.partial(quantized, options)
    for limit in COMPRESSED_BYTES:
        yield f"compress, {limit / 1e6:g} MB", functools.partial(compressed, limit)


def plain(model: nn.Module, calibration: list[Any]) -> Iterator[tuple[str, Callable[[], Made]]]:
    """GPTQ by the inputs alone, and low rank by the weights alone and by the inputs; embeddings stay in float32."""

    @functools.cache
    def moments() -> tuple[list[Unit], list[Moments]]:
        units = [unit for unit in find_units(model, None, ()) if unit.reason is None]
        with evaluating(model):
            generator = torch.Generator().manual_seed(0)
            return units, collect(model, units, calibration, None, probes=0, generator=generator)

    def gptq(unit: Unit, found: Moments) -> nn.Module:
        blocks = Blocks(activation_bits=None)
        layer = round_to_blocks(unit.weight, blocks, found.covariance(centred=False), None)
        return layer.with_bias(unit.biases[0] if unit.biases else None)

    def low_rank(unit: Unit, C: Tensor | None) -> nn.Module:
        d_out, d_in = unit.weight.shape
        rank = max(1, int(_SHARE * d_in * d_out / (d_in + d_out)))
        spectrum = whitened_svd(unit.weight, C)
        down, up = nn.Linear(d_in, rank, bias=False), nn.Linear(rank, d_out, bias=bool(unit.biases))
        down.weight.data, up.weight.data = spectrum.left[:, :rank].t().float(), spectrum.right[:rank].t().float()
        if unit.biases:
            up.bias.data = unit.biases[0].detach().clone()
        return nn.Sequential(down, up)

    def inputs(found: Moments) -> Tensor | None:
        return damped(found.covariance(centred=False), _DAMPING)

    sides: dict[str, Callable[[Unit, Moments], nn.Module]] = {
        "GPTQ, 4 bits, blocks of 128": gptq,
        f"SVD of the weights, {_SHARE:g} of the bytes": lambda unit, _: low_rank(unit, None),
        f"SVD whitened by the inputs, {_SHARE:g} of the bytes": lambda unit, found: low_rank(unit, inputs(found)),
    }

    def made(make: Callable[[Unit, Moments], nn.Module]) -> Made:
        network = copy.deepcopy(model)
        for unit, found in zip(*moments(), strict=True):
            for name in (name for place in unit.places for name in place.names):
                network.set_submodule(name, make(unit, found))
        return network.eval(), {}

    for side, make in sides.items():
        yield side, functools.partial(made, make)
