"""Steps on shares and with many rates, against torch's own."""

from __future__ import annotations

import copy

import pytest
import torch
from helpers.training import together
from torch import nn

from panther.runs import optim

SHAPES = [(3, 5), (7,), (2, 4, 6), (1,)]


def test_many_rates_are_those_of_a_group_each():
    generator = torch.Generator().manual_seed(0)
    initial = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]
    initial.append(nn.Parameter(torch.randn(4, generator=generator).double()))
    found = []
    for kind in (torch.optim.Adam, optim.ManyRatesAdam):
        parameters = copy.deepcopy(initial)
        groups = [{"params": [one], "lr": 0.01 * (1 + number)} for number, one in enumerate(parameters)]
        optimizer = kind(groups, betas=(0.9, 0.99))
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.9**step)
        draw = torch.Generator().manual_seed(1)
        for step in range(6):
            for number, one in enumerate(parameters):
                # one has no gradient in some steps, and so an older count of them
                gradient = torch.randn(one.shape, generator=draw).to(one.dtype)
                one.grad = None if number == 1 and step in (0, 3) else gradient
            optimizer.step()
            schedule.step()
            if step == 2:
                optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        found.append((parameters, optimizer.state_dict()["state"]))
    (expected, their_state), (parameters, state) = found
    assert not torch.equal(expected[0], initial[0])
    assert all(torch.equal(one, other) for one, other in zip(parameters, expected, strict=True))
    assert state.keys() == their_state.keys()
    for key, values in their_state.items():
        assert state[key].keys() == values.keys()
        assert all(torch.equal(state[key][name], value) for name, value in values.items())


SHARES = """
    import torch
    from helpers.training import batches, network
    from panther.runs import optim, sharding
    from panther.runs.precision import loss_scaler
    from panther.train import process_group

    def trained(kind, options, ours, device=torch.device("cpu")):
        model = network(0)
        model[2].p = 0.0
        optimizer = kind(model.parameters(), lr=0.02, **options)
        sharding.shard_(model, optimizer)
        for x, y in list(batches(shuffle=False))[:4]:
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(x), y).backward()
            if ours:
                optim.clip_norm_(list(model.parameters()), 0.1)
                optim.step_(optimizer, loss_scaler("float32", device))
            else:
                torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
                optimizer.step()
        kinds = {type(value).__name__ for state in optimizer.state.values() for value in state.values() if value.dim()}
        assert kinds <= {"DTensor"}, kinds
        assert all(sharding.is_share(one) for group in optimizer.param_groups for one in group["params"])
        states = [{k: sharding.full(v) for k, v in optimizer.state[p].items()} for p in model.parameters()]
        return [sharding.full(one.detach()) for one in model.parameters()], states

    def main():
        with process_group():
            for kind, options in (
                (torch.optim.AdamW, {}), (torch.optim.Adam, {"fused": True}), (torch.optim.Adam, {"amsgrad": True}),
                (torch.optim.SGD, {"momentum": 0.9}),
            ):
                (values, states), (expected, their_states) = (trained(kind, options, ours) for ours in (True, False))
                for one, other in zip(values, expected, strict=True):
                    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
                for one, other in zip(states, their_states, strict=True):
                    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-7)
"""


def test_steps_on_shares_are_those_of_torch():
    assert together(SHARES, []) == [[0, 0]]


@pytest.mark.parametrize("max_norm", [0.5, 1e6])
def test_one_process_clips_as_torch_does(max_norm):
    generator = torch.Generator().manual_seed(0)
    ours = [nn.Parameter(torch.zeros(shape)) for shape in SHAPES]
    theirs = copy.deepcopy(ours)
    for one, other in zip(ours[1:], theirs[1:], strict=True):
        one.grad = torch.randn(one.shape, generator=generator)
        other.grad = one.grad.clone()
    optim.clip_norm_(ours, max_norm)
    nn.utils.clip_grad_norm_(theirs, max_norm)
    assert ours[0].grad is None
    assert all(torch.equal(one.grad, other.grad) for one, other in zip(ours[1:], theirs[1:], strict=True))
