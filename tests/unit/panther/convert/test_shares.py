"""Rows of a batch for each process, and distillation by two: killed, resumed, and compared with one."""

from __future__ import annotations

import signal
import textwrap

import pytest
import torch
from helpers.training import together
from torch import nn
from torch.nn.utils.rnn import pack_sequence

import panther as pr
from panther.convert import shares

DISTILLED = """
    import copy, dataclasses, os, signal, torch
    import torch.distributed.checkpoint.state_dict, torch.distributed.fsdp
    from pathlib import Path
    import panther as pr
    from panther.train import process_group

    torch.set_num_threads(1)

    def teacher():
        torch.manual_seed(0)
        return torch.nn.Sequential(
            torch.nn.Linear(96, 128), torch.nn.ReLU(), torch.nn.Linear(128, 96), torch.nn.ReLU(), torch.nn.Linear(96, 8)
        )

    def batches():
        # the last has one row
        return list(torch.randn(161, 96, generator=torch.Generator().manual_seed(1)).split(32))

    def distill(folder=None, die_at=None):
        calls, rows = [], set()

        def forward(model, batch):
            calls.append(model)
            rows.add(len(batch))
            if len(calls) == die_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return model(batch)

        made = pr.sketch_and_distill(
            teacher(), batches(), ratio=0.5, stages=(0.7,), steps=30, patience=30, checkpoints=folder, forward=forward,
            progress=False,
        )
        errors = [[s.distillation.error_before, s.distillation.error] for s in made.stages]
        return {"state": made.model.state_dict(), "errors": errors, "rows": rows}

    def sharded():
        student = teacher()
        pr.sketch_(student, ratio=0.5, calibration=batches())
        found = pr.distill_(student, teacher(), batches(), steps=30, shard=True, precision="bfloat16", progress=False)
        return {"state": student.state_dict(), "errors": [found.error_before, found.error]}

    def in_bits():
        student = teacher()
        # of another distribution, so that there is much to gain
        pr.quantize_(student, calibration=[batch.abs() * 3 for batch in batches()], weights="int4")
        found = pr.distill_(student, teacher(), batches(), steps=30, shard=True, progress=False)
        return {"state": student.state_dict(), "errors": [found.error_before, found.error]}

    def main(folder, die_at):
        folder = Path(folder)
        with process_group() as rank:
            left = sorted(path.name for path in (folder / "killed").rglob("*"))
            resumed = distill(folder / "killed", int(die_at))
            found = {"left": left, "resumed": resumed, "whole": distill(), "sharded": sharded(), "in_bits": in_bits()}
            torch.save(found, folder / f"found-{rank}.pt")
"""


def test_two_processes_go_on_after_a_kill_and_agree_with_one(tmp_path):
    # in the training of the second stage
    killed, after = together(DISTILLED, [str(tmp_path), "150"], [str(tmp_path), "0"])
    # the one that is not killed first may lose the other before
    assert -signal.SIGKILL in killed
    assert 0 not in killed
    assert after == [0, 0]
    first, second = (torch.load(tmp_path / f"found-{rank}.pt") for rank in range(2))
    assert first["left"] == ["last.pt", "settings.pt", "stage-2", "stages.pt"]
    for name in ("resumed", "whole", "sharded", "in_bits"):
        for key, value in first["whole" if name == "resumed" else name]["state"].items():
            assert torch.equal(value, first[name]["state"][key]), (name, key)
            assert torch.equal(value, second[name]["state"][key]), (name, key)
    assert first["resumed"]["errors"] == second["whole"]["errors"]
    assert 16 in first["whole"]["rows"]

    space: dict[str, object] = {}
    exec(textwrap.dedent(DISTILLED), space)
    alone = space["distill"]()
    for ours, theirs in zip(first["whole"]["errors"], alone["errors"], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3)
    for key, value in alone["state"].items():
        torch.testing.assert_close(first["whole"]["state"][key], value, rtol=1e-2, atol=1e-3)
    for name in ("sharded", "in_bits"):
        of_one = space[name]()
        assert first[name]["errors"] == pytest.approx(of_one["errors"], rel=0.02)
        assert of_one["errors"][1] < of_one["errors"][0]


@pytest.fixture
def second_of_two(monkeypatch):
    monkeypatch.setattr(shares.processes, "world_size", lambda: 2)
    monkeypatch.setattr(shares.processes, "rank", lambda: 1)
    monkeypatch.setattr(shares.processes, "of_all", lambda value: [value])


def test_a_share_keeps_the_structure(second_of_two):
    x = torch.arange(10).view(5, 2)
    batch = {"ids": x, "more": (x[:, 0], [x]), "flag": True, "scale": torch.tensor(2.0)}
    found = shares.share_of(batch)
    assert shares.rows_of(batch) == 5
    assert torch.equal(found["ids"], x[3:])
    assert torch.equal(found["more"][0], x[3:, 0])
    assert torch.equal(found["more"][1][0], x[3:])
    assert (found["flag"], found["scale"].item()) == (True, 2.0)


@pytest.mark.parametrize(
    "batch",
    [
        torch.zeros(1, 4),
        (torch.zeros(4, 4), torch.zeros(3)),
        {"packed": pack_sequence([torch.zeros(3, 2), torch.zeros(2, 2)])},
        {},
    ],
    ids=["one row", "uneven", "packed", "nothing"],
)
def test_what_has_no_rows_for_each_is_not_shared(second_of_two, batch):
    assert not shares.can_share(batch)


def test_rows_that_depend_on_each_other_are_found(second_of_two):
    torch.manual_seed(0)
    x = torch.randn(6, 4, 16)
    attention = nn.TransformerEncoderLayer(16, 2, 16, batch_first=True).eval()
    assert shares.rows_are_independent(attention, x, None)
    # the first axis is that of time
    steps = nn.TransformerEncoderLayer(16, 2, 16, batch_first=False).eval()
    assert not shares.rows_are_independent(steps, x, None)


def test_different_batches_are_refused(monkeypatch, second_of_two):
    monkeypatch.setattr(shares.processes, "of_all", lambda value: [value, (value[0], value[1], [0.0])])
    with pytest.raises(pr.ConversionError, match="the processes have different batches"):
        shares.check_same([torch.ones(4, 4)])
