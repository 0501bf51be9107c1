"""Sharded training by two processes: killed in the middle, resumed, and compared with one process."""

from __future__ import annotations

import signal

import pytest
import torch
from helpers.training import batches, network, together
from torch import nn

from panther.nn import ConditionalSKLinear
from panther.runs.sharding import _axis, _blocks, _check
from panther.train import evaluate, fit

SHARDED = """
    import os, signal, torch
    import torch.distributed.checkpoint.state_dict, torch.distributed.fsdp
    from pathlib import Path
    from helpers.training import batches, network
    from panther.train import evaluate, fit, full_state_dict, process_group

    torch.set_num_threads(1)

    def run(folder, rank, die_at=None):
        # each process starts elsewhere; the first one's weights and order count
        torch.manual_seed(3 + rank)
        model = network(rank)
        model[2].p = 0.0
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
        seen = []

        def die(x):
            seen.append(x)
            if len(seen) == die_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return x

        results = fit(
            model, batches(seed=rank), epochs=3, optimizer=optimizer, validation=batches(201, shuffle=False),
            augment=die, checkpoints=folder, checkpoint_every=2, shard=True,
        )
        held = sum(parameter.to_local().numel() for parameter in model.parameters())
        assert held < 0.6 * sum(parameter.numel() for parameter in model.parameters()), held
        # one row for two processes
        evaluate(model, batches(1, shuffle=False))
        return full_state_dict(model), [[r.loss, r.score] for r in results], len(seen)

    def main(folder, die_at):
        folder = Path(folder)
        with process_group() as rank:
            found = {"resumed": run(folder / "killed", rank, int(die_at)), "whole": run(folder / "whole", rank)}
            if rank == 0:
                torch.save(found, folder / "found.pt")
"""


def test_two_processes_go_on_after_a_kill_and_agree_with_one(tmp_path):
    # seven batches an epoch: killed in the fifth of the second, of which four are saved
    killed, after = together(SHARDED, [str(tmp_path), "12"], [str(tmp_path), "0"])
    # the one that is not killed first may lose the other before
    assert -signal.SIGKILL in killed
    assert 0 not in killed
    assert after == [0, 0]
    found = torch.load(tmp_path / "found.pt")
    resumed, whole = found["resumed"], found["whole"]
    assert resumed[2] == 3 * 7 - (7 + 4)
    assert resumed[0].keys() == whole[0].keys()
    assert all(torch.equal(value, whole[0][name]) for name, value in resumed[0].items())
    assert resumed[1] == whole[1]
    folder = tmp_path / "killed"
    assert {path.name for path in folder.iterdir()} >= {"best.pt"}
    assert len(list(folder.glob("last-*"))) == 1

    model = network(0)
    model[2].p = 0.0
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    options = {"epochs": 3, "optimizer": optimizer, "validation": batches(201, shuffle=False)}
    expected = fit(model, batches(), **options)
    assert resumed[1] == [[pytest.approx(r.loss, rel=1e-4), pytest.approx(r.score, rel=1e-2)] for r in expected]
    for name, value in model.state_dict().items():
        torch.testing.assert_close(resumed[0][name], value, rtol=1e-3, atol=1e-4)
    best = network(1)
    best.load_state_dict(torch.load(folder / "best.pt"))
    assert evaluate(best, options["validation"]) == pytest.approx(max(score for _, score in resumed[1]))


def test_blocks_are_the_members_of_lists_that_share_nothing():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(10, 8)
            self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.ReLU()) for _ in range(2))
            self.layers = nn.ModuleList(nn.TransformerEncoderLayer(8, 2, 8) for _ in range(2))
            self.heads = nn.ModuleList([nn.Linear(8, 10), nn.Linear(8, 3)])
            self.heads[0].weight = self.table.weight

    net = Net()
    assert _blocks(net) == [net.blocks[0][0], net.blocks[1][0], *net.layers, net.heads[1]]


@pytest.mark.parametrize(("shape", "axis"), [((6, 4), 0), ((1, 32, 8), 1), ((1, 3, 8), 2), ((3, 5), 0), ((1,), 0)])
def test_the_axis_is_the_first_that_two_can_share(shape, axis):
    assert _axis(shape, 2) == axis


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.ParameterList([nn.Parameter(torch.tensor(1.0))]), r"parameter 0 has no axis and can't be sharded"),
        (
            nn.Sequential(ConditionalSKLinear(64, 64, 8, num_terms=1, low_rank=8)),
            r"0 chooses a branch by the number of rows",
        ),
    ],
)
def test_refuses_what_cannot_be_sharded(model, message):
    with pytest.raises(ValueError, match=message):
        _check(model, None, {})


def test_refuses_optimizers_that_would_lose_their_state_or_parameters():
    model = nn.Linear(4, 4)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    optimizer = torch.optim.Adam(model.parameters())
    _check(model, optimizer, names)
    optimizer.add_param_group({"params": nn.Parameter(torch.zeros(3))})
    with pytest.raises(ValueError, match="has a parameter of another model"):
        _check(model, optimizer, names)
    model(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    with pytest.raises(ValueError, match="the optimizer has already taken steps"):
        _check(model, optimizer, names)
