"""Median latency of a call."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch


def median_latency_us(
    call: Callable[[], object], device: torch.device | None = None, *, seconds: float = 0.02
) -> float:
    """Measure the median time of a call, over some seconds and at least five calls, after two warm-up calls.

    Args:
        call: what to time.
        device: synchronized after each call (CUDA).
        seconds: how long to measure.
    """

    def once() -> float:
        start = time.perf_counter()
        call()
        if device is not None and device.type == "cuda":
            torch.cuda.synchronize(device)
        return (time.perf_counter() - start) * 1e6

    once()
    once()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < 5 or time.perf_counter() < end:
        times.append(once())
    return statistics.median(times)
