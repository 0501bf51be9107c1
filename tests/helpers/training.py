"""A small network and its batches, for training tests in this process and in others."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, TensorDataset

from panther.nn import SKLinear
from panther.train import EpochResult, fit, process_group

FOLDER = Path(__file__).parents[1]


def environment(**more: str) -> dict[str, str]:
    """The environment of another process, which can import these helpers and shares the cores."""
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


def train_in_group(folder: str | Path, die_after: int = 0) -> None:
    """Train with all processes of the group, or alone; each writes what it saw to ``results-RANK.json``.

    Args:
        folder: for the checkpoints and the results.
        die_after: the epoch after which the process dies, as when a machine is lost; 0 for none.
    """
    torch.set_num_threads(1)
    with process_group() as rank:
        # each process starts elsewhere; the first one's weights and order count
        torch.manual_seed(3 + rank)
        model = network(rank)
        model[2].p = 0.0
        steps = []

        def die(result: EpochResult) -> None:
            if result.epoch == die_after:
                os._exit(9)

        def count(x: torch.Tensor) -> torch.Tensor:
            steps.append(len(x))
            return x

        results = fit(
            model, batches(seed=rank), epochs=4, lr=0.02, validation=batches(201, shuffle=False), checkpoints=folder,
            on_epoch=die, augment=count,
        )  # fmt: skip
        found = {
            "results": [[result.loss, result.score] for result in results],
            "steps": len(steps),
            "world": int(os.environ.get("WORLD_SIZE", "1")),
            "group": int(os.environ.get("GROUP_RANK", "0")),
        }
        Path(folder, f"results-{rank}.json").write_text(json.dumps(found))


def told(folder: Path) -> list[dict[str, Any]]:
    """What each process of ``train_in_group`` wrote."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob("results-*.json"))]


LAUNCHER = """
import json, os, socket

def _together(count, arguments):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    processes = []
    for rank in range(count):
        processes.append(os.fork())
        if processes[-1] == 0:
            if count > 1:
                os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count)}
                os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            try:
                main(*arguments)
                os._exit(0)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
    return [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in processes]

print(json.dumps([_together(int(sys.argv[2]), arguments) for arguments in json.loads(sys.argv[1])]))
"""


def together(script: str, *runs: Sequence[str], count: int = 2, limit_s: float = 240) -> list[list[int]]:
    """Run the ``main`` of a script in processes that find one another as those of torchrun do; their exit codes.

    Args:
        script: what it imports is imported once, and the processes are forks.
        runs: arguments of main, of one run after the other.
        count: processes of each run.
        limit_s: for all of them.
    """
    code = f"import sys, traceback\n{textwrap.dedent(script)}\n{LAUNCHER}"
    command = [sys.executable, "-c", code, json.dumps(runs), str(count)]
    options = {"env": environment(GLOO_SOCKET_IFNAME="lo"), "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, start_new_session=True, **options) as launcher:
        try:
            out, _ = launcher.communicate(timeout=limit_s)
        except BaseException:
            os.killpg(launcher.pid, signal.SIGKILL)
            raise
    return json.loads(out.splitlines()[-1])


class Killed(BaseException):
    """Ends a run like a signal: no handler catches it."""


class DyingForward:
    """A forward function of conversions that raises `Killed` at a call; ``calls`` counts them.

    Args:
        die_at: Number of the call, from 1; None for none.
    """

    def __init__(self, die_at: int | None) -> None:
        self.die_at, self.calls = die_at, 0

    def __call__(self, model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        if self.calls == self.die_at:
            raise Killed
        return model(batch)


class Reads(TorchDispatchMode):
    """Counts the numbers that are read from tensors into Python; each read would wait for a GPU."""

    count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += function is torch.ops.aten._local_scalar_dense.default
        return function(*args, **(kwargs or {}))
