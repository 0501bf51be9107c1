"""The training loop: that it learns, resumes bit for bit, and shares work between processes."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest
import torch
from helpers.training import Reads, batches, environment, network, together, told, train_in_group
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from panther.nn import SKLinear
from panther.train import EpochResult, evaluate, fit, param_groups


def assert_same(ours: nn.Module, theirs: nn.Module) -> None:
    for key, value in ours.state_dict().items():
        assert torch.equal(value, theirs.state_dict()[key]), key


def test_learns_and_reports():
    model = network()
    seen = []
    results = fit(model, batches(), epochs=12, lr=0.02, validation=batches(shuffle=False), on_epoch=seen.append)
    assert seen == results
    assert [result.epoch for result in results] == list(range(1, 13))
    assert results[-1].loss < 0.6 * results[0].loss
    assert results[-1].score == evaluate(model, batches()) > 0.75
    assert results[0].lr > results[-1].lr == pytest.approx(0, abs=1e-9)
    assert model.training


@pytest.mark.parametrize("schedule", ["cosine", "constant", lambda done: 1 - done])
def test_schedules(schedule):
    results = fit(network(), batches(), epochs=4, lr=0.01, schedule=schedule)
    rates = [round(result.lr / 0.01, 6) for result in results]
    halves = {"cosine": [0.853553, 0.5, 0.146447, 0.0], "constant": [1.0] * 4}
    assert rates == halves.get(schedule if isinstance(schedule, str) else "", [0.75, 0.5, 0.25, 0.0])


def test_own_optimizer_and_groups():
    model = network()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    optimizer = torch.optim.SGD(param_groups(model, sketch_lr=0.1, lr=0.0))
    fit(model, batches(), epochs=1, optimizer=optimizer, schedule="constant")
    for (name, parameter), old in zip(model.named_parameters(), before, strict=True):
        assert torch.equal(parameter, old) == name.endswith("bias"), name


def test_clipping():
    model = network()
    before = nn.utils.parameters_to_vector(model.parameters()).detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    fit(model, batches(size=203), epochs=1, optimizer=optimizer, clip_norm=0.05, schedule="constant")
    moved = (nn.utils.parameters_to_vector(model.parameters()) - before).norm().item()
    assert moved == pytest.approx(0.05, rel=1e-3)


def test_steps_read_no_number():
    counts = []
    for rows in (64, 640):
        model = network()
        # Adam on the CPU reads its counts of steps
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with Reads() as reads:
            fit(model, batches(rows), epochs=1, optimizer=optimizer)
        counts.append(reads.count)
    assert counts[0] == counts[1] > 0


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_mixed_precision_reaches_the_same_loss(precision):
    seen = []
    model = network()
    model[0].register_forward_hook(lambda module, args, output: seen.append(output.dtype))
    results = fit(model, batches(), epochs=8, lr=0.02, precision=precision)
    full = fit(network(), batches(), epochs=8, lr=0.02)
    assert set(seen) == {getattr(torch, precision)}
    assert results[-1].loss == pytest.approx(full[-1].loss, rel=0.25)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


class Killed(BaseException):
    pass


def test_resumes_bit_for_bit_within_the_process(tmp_path):
    def options(order):
        return {"epochs": 5, "lr": 0.02, "validation": batches(shuffle=False), "generators": [order]}

    def noisy(order):
        return lambda x: x + 0.1 * torch.randn(x.shape, generator=order)

    torch.manual_seed(3)
    whole, order = network(), torch.Generator().manual_seed(5)
    expected = fit(whole, batches(), augment=noisy(order), **options(order))

    def kill(result: EpochResult) -> None:
        if result.epoch == 3:
            raise Killed

    torch.manual_seed(3)
    half, order = network(), torch.Generator().manual_seed(5)
    with pytest.raises(Killed):
        fit(half, batches(), augment=noisy(order), checkpoints=tmp_path, on_epoch=kill, **options(order))
    # a new process would have other weights, other orders, other states
    torch.manual_seed(77)
    resumed, order, seen = network(8), torch.Generator().manual_seed(6), []
    results = fit(
        resumed, batches(seed=4), augment=noisy(order), checkpoints=tmp_path, on_epoch=seen.append, **options(order)
    )
    assert results == seen == expected
    assert_same(resumed, whole)
    # what is finished is not trained again
    assert fit(resumed, batches(), augment=noisy(order), checkpoints=tmp_path, **options(order)) == expected
    assert_same(resumed, whole)


class DieAt(nn.Module):
    """Passes on what it gets, until it has trained on so many batches."""

    def __init__(self, batches: int) -> None:
        super().__init__()
        self.left = batches

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.left -= self.training
        if self.left < 0:
            raise Killed
        return x


class Noisy(torch.utils.data.Dataset):
    """Rows that are noisy anew each time, by torch's own generator."""

    def __init__(self) -> None:
        self.rows = batches().dataset

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        x, y = self.rows[index]
        return x + 0.1 * torch.randn(x.shape), y


@pytest.mark.parametrize("shard", [False, True])
def test_resumes_bit_for_bit_within_an_epoch(tmp_path, shard):
    def run(die_at: int, folder: str, seed: int = 0) -> tuple[nn.Module, list[EpochResult]]:
        torch.manual_seed(seed)
        model = nn.Sequential(DieAt(die_at), *network(seed))
        options = {"epochs": 3, "lr": 0.02, "checkpoints": tmp_path / folder, "checkpoint_every": 2, "shard": shard}
        # the order of rows, their noise and dropout all draw on torch's own generator
        loader = DataLoader(Noisy(), batch_size=32, shuffle=True)
        return model, fit(model, loader, **options)

    whole, expected = run(100, "whole")
    # seven batches an epoch: killed after the fifth of the second, of which four are saved
    with pytest.raises(Killed):
        run(12, "killed")
    resumed, results = run(3 + 7, "killed", seed=5)
    assert results == expected
    assert_same(resumed, whole)


KILLED = """
    import os, signal, torch
    from helpers.training import Reads, batches, network
    from panther.train import fit

    def main(folder, kill_at="0"):
        assert not os.path.exists(os.path.join(folder, "end.pt"))
        torch.set_num_threads(1)
        torch.manual_seed(3)
        model = network()

        def die(result):
            if result.epoch == int(kill_at):
                os.kill(os.getpid(), signal.SIGKILL)

        fit(model, batches(), epochs=4, lr=0.02, checkpoints=folder, on_epoch=die)
        torch.save(model.state_dict(), os.path.join(folder, "end.pt"))
"""


def test_resumes_bit_for_bit_after_a_kill(tmp_path):
    whole, killed = str(tmp_path / "whole"), str(tmp_path / "killed")
    codes = together(KILLED, [whole], [killed, "2"], [killed], count=1)
    assert codes == [[0], [-signal.SIGKILL], [0]]
    whole, killed = (torch.load(tmp_path / folder / "end.pt") for folder in ("whole", "killed"))
    for key, value in whole.items():
        assert torch.equal(killed[key], value), key


def test_best_and_last(tmp_path):
    model = network()
    scores = iter([0.2, 0.9, 0.9, 0.1])
    states = []

    def metric(model: nn.Module, _: DataLoader) -> float:
        states.append({key: value.clone() for key, value in model.state_dict().items()})
        return next(scores)

    fit(model, batches(), epochs=4, validation=batches(), metric=metric, checkpoints=tmp_path)
    best = torch.load(tmp_path / "best.pt")
    assert all(torch.equal(best[key], value) for key, value in states[1].items())
    assert {path.name for path in tmp_path.iterdir()} == {"best.pt", "last.pt"}


def test_a_checkpoint_of_another_run_or_a_damaged_one(tmp_path):
    fit(network(), batches(), epochs=2, checkpoints=tmp_path)
    with pytest.raises(ValueError, match=r"last\.pt is of a run with epochs 2; this one has epochs 3\. Use"):
        fit(network(), batches(), epochs=3, checkpoints=tmp_path)
    with pytest.raises(ValueError, match=r"lr \[0\.001\], precision float32; this one has lr \[0\.002\], precision bf"):
        fit(network(), batches(), epochs=2, lr=0.002, precision="bfloat16", checkpoints=tmp_path)
    with pytest.raises(ValueError, match=r"does not fit this run: 0\.S1s is \(1, 32, 8\) there, and missing in"):
        fit(nn.Sequential(nn.Linear(32, 4)), batches(), epochs=2, checkpoints=tmp_path)
    with pytest.raises(ValueError, match=r"last\.pt is of a run with shard False; this one has shard True"):
        fit(network(), batches(), epochs=2, checkpoints=tmp_path, shard=True)
    assert len(fit(network(), batches(), epochs=3, checkpoints=tmp_path, resume=False)) == 3
    (tmp_path / "last.pt").write_bytes((tmp_path / "last.pt").read_bytes()[:500])
    with pytest.raises(ValueError, match=r"last\.pt cannot be read as a training checkpoint"):
        fit(network(), batches(), epochs=3, checkpoints=tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, r"epochs \(0\) must be at least 1"),
        ({"epochs": 1, "precision": "int8"}, r"precision \('int8'\)"),
        ({"epochs": 1, "checkpoint_every": 0}, r"checkpoint_every \(0\) must be at least 1"),
        ({"epochs": 1, "schedule": "linear"}, r"schedule \('linear'\)"),
        ({"epochs": 3, "lr": 1e30, "clip_norm": None}, r"the loss is .* in epoch \d; a lower lr \(1e\+30\) may help"),
    ],
    ids=["epochs", "precision", "every", "schedule", "lr"],
)
def test_wrong_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        fit(network(), batches(), **options)


def test_no_batches():
    empty = DataLoader(TensorDataset(torch.zeros(0, 32), torch.zeros(0, dtype=torch.int64)))
    with pytest.raises(ValueError, match="batches holds no batch"):
        fit(network(), empty, epochs=1)


def test_evaluate_leaves_the_mode_of_every_module():
    model = nn.Sequential(nn.BatchNorm1d(16), SKLinear(16, 4, 1, 1), nn.Dropout())
    model[0].eval()
    evaluate(model, rows_of(16))
    assert [module.training for module in (model, *model)] == [True, False, True, True]
    with pytest.raises(RuntimeError):
        evaluate(model, rows_of(5))
    assert [module.training for module in (model, *model)] == [True, False, True, True]


def test_evaluate_refuses_batches_without_rows():
    with pytest.raises(ValueError, match="batches holds no row"):
        evaluate(SKLinear(16, 4, 1, 1), rows_of(16, rows=0))


def rows_of(width, rows=8):
    return DataLoader(TensorDataset(torch.zeros(rows, width), torch.zeros(rows, dtype=torch.long)), batch_size=4)


def test_evaluate_leaves_the_mode():
    model = network().eval()
    evaluate(model, batches())
    assert not model.training


def test_two_processes_under_torchrun_reach_the_loss_of_one(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    train_in_group(one)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--no-python"]
    script = "import sys; from helpers.training import train_in_group; train_in_group(sys.argv[1])"
    done = subprocess.run(
        [*torchrun, sys.executable, "-c", script, str(two)],
        check=False, timeout=150, env=environment(), capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (expected,) = told(one)
    first, second = told(two)
    assert first["results"] == second["results"]
    for ours, theirs in zip(first["results"], expected["results"], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3)
