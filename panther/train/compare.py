"""The dense and the sketched network, trained side by side on the same rows."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader

from panther.analysis import median_latency_us
from panther.efficiency import multiply_adds_per_row
from panther.nn import SKLinear
from panther.train.data import Dataset
from panther.train.loop import EpochResult, evaluate, fit
from panther.train.networks import ThreeLayerNet


@dataclass(frozen=True)
class Trained:
    """A network, and what training it came to.

    Attributes:
        model: in eval mode.
        learnable, fixed: its numbers of parameters.
        bytes_in_memory: of its parameters and buffers.
        multiply_adds_per_row: of a forward pass.
        latency_us: the measured median of a forward pass of one row.
        test_accuracy: on the held-out rows, 0 to 1.
        duration_s: of the training.
    """

    model: nn.Module
    learnable: int
    fixed: int
    bytes_in_memory: int
    multiply_adds_per_row: int
    latency_us: float
    test_accuracy: float
    duration_s: float


@dataclass(frozen=True)
class Comparison:
    """Both networks, trained on the same rows in the same order from the same seed."""

    dense: Trained
    sketched: Trained


def train_side_by_side(
    data: Dataset,
    *,
    epochs: int,
    batch_size: int,
    lr: float,
    seed: int,
    standardise: bool,
    on_epoch: Callable[[str, EpochResult], None],
    checkpoints: Path | None = None,
) -> Comparison:
    """Train the tutorial's network, dense and sketched.

    Args:
        data: to train on and to test with.
        epochs, batch_size, lr: of the training.
        seed: of the initial weights, U and the order of the rows; torch's own random state is left as it was.
        standardise: put the mean and standard deviation of the training rows into the networks.
        on_epoch: is called after each epoch with "dense" or "sketched".
        checkpoints: a folder in which a run that was killed finds where it was.
    """
    mean = std = None
    if standardise:
        mean, std = data.train_x.mean(dim=0), data.train_x.std(dim=0)
        std = torch.where(std > 0, std, torch.ones_like(std))

    def train(kind: str) -> Trained:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = ThreeLayerNet(
                data.train_x.shape[1], len(data.labels), sketched=kind == "sketched", mean=mean, std=std
            )
            order = torch.Generator().manual_seed(seed)
            batches = DataLoader(data.train, batch_size=batch_size, shuffle=True, generator=order)
            augment = None if data.augment is None else functools.partial(data.augment, generator=order)
            start = time.perf_counter()
            fit(
                model,
                batches,
                epochs=epochs,
                lr=lr,
                augment=augment,
                on_epoch=functools.partial(on_epoch, kind),
                checkpoints=None if checkpoints is None else checkpoints / kind,
            )
            duration_s = time.perf_counter() - start
        accuracy = evaluate(model, DataLoader(data.test, batch_size=512))
        return _summary(model.eval(), data, accuracy, duration_s)

    return Comparison(dense=train("dense"), sketched=train("sketched"))


def _summary(model: nn.Module, data: Dataset, accuracy: float, duration_s: float) -> Trained:
    sketched = [layer for layer in model.modules() if isinstance(layer, SKLinear)]
    dense = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
    row = data.test_x[:1]
    with torch.no_grad():
        latency_us = median_latency_us(lambda: model(row), seconds=0.1)
    return Trained(
        model,
        learnable=sum(parameter.numel() for parameter in model.parameters()),
        fixed=sum(layer.parameter_count().fixed for layer in sketched),
        bytes_in_memory=sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers())),
        multiply_adds_per_row=sum(
            multiply_adds_per_row(layer.in_features, layer.out_features, layer.num_terms, layer.low_rank)
            for layer in sketched
        )
        + sum(layer.in_features * layer.out_features for layer in dense),
        latency_us=latency_us,
        test_accuracy=accuracy,
        duration_s=duration_s,
    )
