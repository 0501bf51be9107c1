"""The dense and the sketched network, trained side by side on the same rows."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from panther.analysis import median_latency_us
from panther.counting import multiply_adds_per_row
from panther.nn import SKLinear
from panther.runs import checkpoint, sharding
from panther.runs.precision import Precision
from panther.train.data import Dataset
from panther.train.evaluation import metrics
from panther.train.loop import fit
from panther.train.networks import ThreeLayerNet
from panther.train.state import EpochResult
from panther.train.targets import TargetLoss, Task


@dataclass(frozen=True)
class Trained:
    """A trained network with its results.

    Attributes:
        model: in eval mode.
        learnable, fixed: its numbers of parameters.
        bytes_in_memory: of its parameters and buffers.
        multiply_adds_per_row: of a forward pass.
        latency_us: the measured median of a forward pass of one row.
        metrics: on the held-out rows, the headline of the task first (`panther.train.metrics`).
        duration_s: of the training.
    """

    model: nn.Module
    learnable: int
    fixed: int
    bytes_in_memory: int
    multiply_adds_per_row: int
    latency_us: float
    metrics: dict[str, float]
    duration_s: float

    @property
    def test_accuracy(self) -> float:
        """The share of held-out rows that are classified rightly, 0 to 1; for classes alone."""
        return self.metrics["accuracy"]


@dataclass(frozen=True)
class RunOptions:
    """How a training run is computed, see `panther.train.fit`.

    Attributes:
        device: "cpu" or "cuda".
        precision, shard, resume: see there.
        checkpoints: a folder in which a run that was killed finds where it was.
        checkpoint_every: steps between the states within an epoch; None for one an epoch.
    """

    device: str = "cpu"
    precision: Precision = "float32"
    shard: bool = False
    checkpoints: Path | None = None
    checkpoint_every: int | None = None
    resume: bool = True


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
    run: RunOptions | None = None,
) -> Comparison:
    """Train the tutorial's network, dense and sketched.

    Args:
        data: to train on and to test with.
        epochs, batch_size, lr: of the training.
        seed: of the initial weights, U and the order of the rows; torch's own random state is left as it was.
        standardise: put the mean and standard deviation of the training rows into the networks.
        on_epoch: is called after each epoch with "dense" or "sketched".
        run: how it is computed, and where its checkpoints are.

    Raises:
        ValueError: the checkpoints are of a run on other data or with other settings.
    """
    run = run if run is not None else RunOptions()
    if run.checkpoints is not None:
        settings = {"data": data.name, "rows": len(data.train_x), "features": data.train_x.shape[1], "seed": seed}
        checkpoint.hold_to(run.checkpoints / "settings.pt", settings, resume=run.resume)
    mean = std = None
    if standardise:
        mean, std = data.train_x.mean(dim=0), data.train_x.std(dim=0)
        std = torch.where(std > 0, std, torch.ones_like(std))
    target_mean = target_std = None
    if data.task == "regression":
        target_mean, target_std = data.train_y.mean(dim=0), data.train_y.std(dim=0)
        target_std = torch.where(target_std > 0, target_std, torch.ones_like(target_std))

    def build(kind: str) -> ThreeLayerNet:
        return ThreeLayerNet(
            data.train_x.shape[1],
            data.outputs,
            sketched=kind == "sketched",
            mean=mean,
            std=std,
            target_mean=target_mean,
            target_std=target_std,
        )

    def train(kind: str) -> Trained:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = build(kind).to(run.device)
            order = torch.Generator().manual_seed(seed)
            batches = DataLoader(data.train, batch_size=batch_size, shuffle=True, generator=order)
            augment = None if data.augment is None else functools.partial(data.augment, generator=order)
            start = time.perf_counter()
            fit(
                model,
                batches,
                epochs=epochs,
                lr=lr,
                loss_fn=_loss(data.task, None if target_std is None else target_std.to(run.device)),
                augment=augment,
                on_epoch=functools.partial(on_epoch, kind),
                checkpoints=None if run.checkpoints is None else run.checkpoints / kind,
                checkpoint_every=run.checkpoint_every,
                resume=run.resume,
                precision=run.precision,
                shard=run.shard,
            )
            duration_s = time.perf_counter() - start
            found = metrics(model, DataLoader(data.test, batch_size=512), task=data.task)
            state = sharding.full_state_dict(model)
            whole = build(kind)
        if state:
            whole.load_state_dict(state)
        return _summary(whole.eval(), data, found, duration_s)

    return Comparison(dense=train("dense"), sketched=train("sketched"))


def _loss(task: Task, target_std: Tensor | None) -> Callable[[Tensor, Tensor], Tensor]:
    if target_std is None:
        return TargetLoss(task)
    # in units of the targets' spread, so that clipping and the learning rate mean the same for all data
    return lambda output, y: nn.functional.mse_loss(output / target_std, y / target_std)


def _summary(model: nn.Module, data: Dataset, found: dict[str, float], duration_s: float) -> Trained:
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
        metrics=found,
        duration_s=duration_s,
    )
