"""Faster products of float32 on a CPU, where rounding to bfloat16 does no harm.

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

    The setting is one of the process, and comes back as it was. It stays as it is on other devices, where the caller
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
    """Whether torch finds AMX; True where it can't say."""
    found: bool = getattr(torch.cpu, "_is_amx_tile_supported", lambda: True)()
    return found
