"""Faster float32 products on a CPU, for uses in which rounding to bfloat16 is harmless.

See docs/decisions/0085-conversion-time-on-a-cpu.md.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def rounded_products(device: torch.device) -> Iterator[None]:
    """Let oneDNN compute products of float32 on a CPU, with operands rounded to bfloat16 where that is faster.

    The setting is global and restored afterwards. It is not changed on other devices, if the caller
    has set it by backend, and on CPUs with matrix instructions (AMX), where rounding is not only allowed but done.

    Args:
        device: of the products.
    """
    if device.type != "cpu" or _has_matrix_instructions():
        yield
        return
    try:
        before = torch.get_float32_matmul_precision()
    except RuntimeError:
        # set per backend, which no single name expresses
        yield
        return
    backends = (torch.backends.mkldnn.matmul, torch.backends.cuda.matmul)  # type: ignore[attr-defined]
    held = [backend.fp32_precision for backend in backends]
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
        for backend, precision in zip(backends, held, strict=True):
            backend.fp32_precision = precision


@functools.cache
def _has_matrix_instructions() -> bool:
    """Whether torch finds AMX; True if unknown."""
    found: bool = getattr(torch.cpu, "_is_amx_tile_supported", lambda: True)()
    return found
