"""A small network and its batches, for tests of training in this process and in others."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from panther.nn import SKLinear

FOLDER = Path(__file__).parents[1]


def environment(**more: str) -> dict[str, str]:
    """The environment of another process, which finds these helpers there and shares the cores."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(FOLDER), **more}


def network(seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(SKLinear(32, 64, 1, 8), nn.ReLU(), nn.Dropout(0.1), SKLinear(64, 4, 1, 1))


def batches(rows: int = 203, size: int = 32, *, shuffle: bool = True, seed: int = 0) -> DataLoader:
    generator = torch.Generator().manual_seed(9)
    x = torch.randn(rows, 32, generator=generator)
    y = (x @ torch.randn(32, 4, generator=generator)).argmax(dim=1)
    order = torch.Generator().manual_seed(seed)
    return DataLoader(TensorDataset(x, y), batch_size=size, shuffle=shuffle, generator=order)
