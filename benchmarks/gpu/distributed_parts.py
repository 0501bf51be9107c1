"""What one process of ``distributed.py`` trains and times: the parts parity, scaling, distill and resume."""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import time
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from pair import RANKS, Block, set_precision
from torch import Tensor, nn

from panther.convert.distill import distill_
from panther.nn import SKLinear
from panther.runs import processes
from panther.train import fit, full_state_dict, process_group

WARMUP = 5
PARITY_STEPS, PARITY_BATCH = 4, 4
RESUME_BATCHES, RESUME_EPOCHS, RESUME_BATCH, RESUME_BLOCKS = 4, 2, 4, 4
DISTILL_BATCHES = 3


class Batches:
    """Batches on the device, as `fit` reads them; ``before_batch`` is called before each one and at the end."""

    sampler = generator = None

    def __init__(self, batches: list[tuple[Tensor, Tensor]], count: int, before_batch: Any = None) -> None:
        self.batches, self.count, self.before_batch = batches, count, before_batch
        self.batch_size = len(batches[0][0])

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for number in range(self.count):
            if self.before_batch is not None:
                self.before_batch(number)
            yield self.batches[number % len(self.batches)]
        if self.before_batch is not None:
            self.before_batch(self.count)


class Clock:
    """Milliseconds a step, of each round of steps after the first few; called with the number of steps taken."""

    def __init__(self, device: torch.device, steps: int, rounds: int) -> None:
        self.device, self.steps, self.last = device, steps, WARMUP + steps * rounds
        self.begun, self.ms = 0.0, []

    def __call__(self, number: int) -> None:
        if number < WARMUP or (number - WARMUP) % self.steps:
            return
        synchronize(self.device)
        now = time.perf_counter()
        if number > WARMUP:
            self.ms.append(1000 * (now - self.begun) / self.steps)
        self.begun = now


class Enough(Exception):
    """Ends a distillation that has been timed."""


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def transformer(arguments: argparse.Namespace, device: torch.device, blocks: int, *, dense: bool = False) -> nn.Module:
    torch.manual_seed(0)

    def linear(d_in: int, d_out: int) -> nn.Module:
        return nn.Linear(d_in, d_out) if dense else SKLinear(d_in, d_out, *RANKS[0])

    with device:
        return nn.Sequential(*[Block(linear, **arguments.sizes) for _ in range(blocks)])


def data(arguments: argparse.Namespace, device: torch.device, batch: int, count: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator(device=device).manual_seed(1)
    shape = (count, batch, arguments.length, arguments.sizes["width"])
    x, y = (torch.randn(shape, device=device, generator=generator) for _ in range(2))
    return list(zip(x, y, strict=True))


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)


def ways() -> dict[str, bool]:
    """Ways to train with the processes that there are, with the argument ``shard``."""
    return {"one": False} if processes.world_size() == 1 else {"ddp": False, "fsdp2": True}


def peaks_mib(device: torch.device) -> list[int]:
    """Peak memory of each GPU since the last call."""
    peak = round(torch.cuda.max_memory_allocated() / 2**20) if device.type == "cuda" else 0
    found = processes.of_all(peak)
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    return found


def parity(arguments: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Losses of each way; parameters before and after are left in files."""
    set_precision("float32")
    found = {}
    for way, shard in ways().items():
        model = transformer(arguments, device, arguments.blocks)
        before = {name: value.detach().cpu().clone() for name, value in model.named_parameters()}
        # linear in the gradients, which Adam is not
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        # one batch an epoch, so that the loss of each step is known
        batches = Batches(data(arguments, device, PARITY_BATCH, 1), 1)
        options = {"epochs": PARITY_STEPS, "schedule": "constant", "optimizer": optimizer, "shard": shard}
        results = fit(model, batches, **options)
        state = full_state_dict(model)
        if processes.rank() == 0:
            updates = {name: state[name].detach().cpu() - value for name, value in before.items()}
            torch.save({"updates": updates, "before": before}, arguments.folder / f"parity-{way}.pt")
        found[way] = [result.loss for result in results]
        del model, optimizer
        peaks_mib(device)
    return found


def scaling(arguments: argparse.Namespace, device: torch.device) -> list[dict[str, Any]]:
    set_precision("tf32")
    found, alone = [], processes.world_size() == 1
    sizes = sorted({*arguments.batches, *(size // 2 for size in arguments.batches)}) if alone else arguments.batches
    for batch in sizes:
        for way, shard in ways().items():
            model = transformer(arguments, device, arguments.blocks)
            clock = Clock(device, arguments.steps, arguments.rounds)
            batches = Batches(data(arguments, device, batch, 1), clock.last, clock)
            options = {"epochs": 1, "optimizer": adamw(model), "precision": "bfloat16", "shard": shard}
            (result,) = fit(model, batches, **options)
            found.append(row(way, batch, clock, device) | {"loss": result.loss})
            del model, options, batches
    return found


def distill(arguments: argparse.Namespace, device: torch.device) -> list[dict[str, Any]]:
    set_precision("tf32")
    found, alone, batch = [], processes.world_size() == 1, arguments.distill_batch
    for size in (batch // 2, batch) if alone else (batch,):
        for way, shard in ways().items():
            student = transformer(arguments, device, arguments.blocks)
            teacher = transformer(arguments, device, arguments.blocks, dense=True)
            clock, taken = Clock(device, arguments.steps, arguments.rounds), 0

            # the teacher is called once a step; before the first step also for the measurement of the student
            def forward(model: nn.Module, x: Tensor, teacher: nn.Module = teacher, clock: Clock = clock) -> Tensor:
                nonlocal taken
                if model is not teacher and torch.is_grad_enabled():
                    clock(taken)
                    if taken == clock.last:
                        raise Enough
                    taken += 1
                return model(x)

            inputs = [x for x, _ in data(arguments, device, size, DISTILL_BATCHES)]
            options = {"precision": "bfloat16", "shard": shard, "progress": False, "validation": inputs[-1:]}
            # measured after each twentieth of the steps: not before it has ended
            options |= {"steps": 20 * (clock.last + 1), "lr": 1e-4, "forward": forward}
            try:
                distill_(student, teacher, inputs[:-1], **options)
            except Enough:
                found.append(row(way, size, clock, device))
            del student, teacher, inputs, options
    return found


def row(way: str, batch: int, clock: Clock, device: torch.device) -> dict[str, Any]:
    gpus, ms = processes.world_size(), statistics.median(clock.ms)
    return {
        "gpus": gpus, "way": way, "batch": batch, "step_ms": [round(each, 3) for each in clock.ms],
        "samples_per_s": round(1000 * batch / ms, 1), "peak_mib": peaks_mib(device),
    }  # fmt: skip


def resumed(arguments: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Losses of each epoch; with ``--kill`` the last process is killed once, in the last epoch."""
    set_precision("tf32")
    taken, killed = 0, arguments.folder / "killed"

    def before_batch(number: int) -> None:
        nonlocal taken
        taken += 1
        late = (checkpoints / "best.pt").exists() and number == RESUME_BATCHES - 1
        if arguments.kill and late and processes.rank() == processes.world_size() - 1 and not killed.exists():
            synchronize(device)
            killed.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    checkpoints = arguments.folder / ("interrupted" if arguments.kill else "uninterrupted")
    model = transformer(arguments, device, min(RESUME_BLOCKS, arguments.blocks))
    batches = Batches(data(arguments, device, RESUME_BATCH, RESUME_BATCHES), RESUME_BATCHES, before_batch)
    options = {"epochs": RESUME_EPOCHS, "optimizer": adamw(model), "precision": "bfloat16", "shard": True}
    results = fit(model, batches, checkpoints=checkpoints, checkpoint_every=2, **options)
    return {"losses": [result.loss for result in results], "batches_read": taken}


WORK = {"parity": parity, "scaling": scaling, "distill": distill, "resume": resumed}


def work(arguments: argparse.Namespace) -> None:
    """The parts of one of the processes; the first writes what was found."""
    warnings.simplefilter("ignore")
    with process_group() as rank:
        device = torch.device("cpu" if arguments.cpu else f"cuda:{torch.cuda.current_device()}")
        found = {}
        for part in arguments.parts:
            begun = time.perf_counter()
            found[part] = WORK[part](arguments, device)
            if rank == 0:
                print(f"  {part}: {time.perf_counter() - begun:.0f} s", flush=True)
        if rank == 0:
            arguments.found.write_text(json.dumps(found))
