import copy

import pytest
import torch
from helpers.training import DyingForward, Killed
from torch import nn

import panther as pr
from panther.convert import ConversionError
from panther.convert.matching import hidden_names


@pytest.fixture
def pair(mlp, inputs):
    student = copy.deepcopy(mlp)
    pr.sketch_(student, ratio=0.35, calibration=inputs[:100])
    return student, mlp


def error(student, teacher, x):
    with torch.no_grad():
        y = teacher(x)
        return ((student(x) - y).norm() / y.norm()).item()


def test_gains_on_held_out_inputs_and_says_how_much(mlp):
    generator = torch.Generator().manual_seed(3)
    mix = torch.randn(96, 96, generator=generator) * torch.arange(1, 97) ** -0.5
    inputs = torch.randn(4000, 96, generator=generator) @ mix.t()
    student, teacher = copy.deepcopy(mlp), mlp
    pr.sketch_(student, ratio=0.35)  # leaves much to gain
    before = error(student, teacher, inputs[3000:])
    teacher_state = copy.deepcopy(teacher.state_dict())
    fixed = {name: buffer.clone() for name, buffer in student.named_buffers()}
    head = student[4].weight.clone()
    result = pr.distill_(
        student, teacher, list(inputs[:3000].split(100)), steps=150, lr=0.01, train="sketched", progress=False
    )
    assert error(student, teacher, inputs[3000:]) < 0.7 * before
    assert result.held_out
    assert result.error < result.error_before
    assert result.cosine > result.cosine_before
    assert 0 < result.best_step <= result.steps <= 150
    assert all(torch.equal(buffer, fixed[name]) for name, buffer in student.named_buffers())
    assert torch.equal(student[4].weight, head)
    assert all(torch.equal(value, teacher_state[name]) for name, value in teacher.state_dict().items())


def test_the_result_is_what_the_kept_state_reaches_on_the_validation(pair, inputs):
    student, teacher = pair
    result = pr.distill_(student, teacher, [inputs[:300]], validation=inputs[300:], steps=40, progress=False)
    assert result.error == pytest.approx(error(student, teacher, inputs[300:]), rel=1e-4)


def test_a_hopeless_step_size_changes_nothing(pair, inputs):
    student, teacher = pair
    before = copy.deepcopy(student.state_dict())
    result = pr.distill_(student, teacher, [inputs], steps=40, lr=30.0, patience=3, progress=False)
    assert result.best_step == 0
    assert result.error == result.error_before
    assert result.steps < 40
    assert not result.held_out
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())


def test_leaves_modes_gradients_and_hooks_as_they_were(pair, inputs):
    student, teacher = pair
    student.train()
    student[2].eval()
    student[0].S1s.requires_grad = False
    pr.distill_(student, teacher, [inputs], steps=2, progress=False)
    assert student[0].training
    assert not student[2].training
    assert [p.requires_grad for p in student[0].parameters()] == [False, True, True]
    assert all(p.requires_grad for p in student[4].parameters())
    assert all(p.grad is None for p in student.parameters())
    assert not any(m._forward_hooks for net in (student, teacher) for m in net.modules())


def test_an_error_takes_everything_back(pair, inputs):
    student, teacher = pair
    before = copy.deepcopy(student.state_dict())
    inputs[7, 7] = torch.nan
    with pytest.raises(ConversionError, match=r"loss became nan .* smaller lr than 0.005"):
        pr.distill_(student, teacher, list(inputs.split(100)), validation=inputs[200:], steps=30, progress=False)
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())
    assert all(p.requires_grad for p in student.parameters())


def test_the_step_of_a_loss_that_is_not_finite_is_named_though_losses_are_read_later(pair, inputs):
    student, teacher = pair
    before = copy.deepcopy(student.state_dict())
    steps = 0

    def forward(model, x):
        nonlocal steps
        if model is teacher or not torch.is_grad_enabled():
            return model(x)
        steps += 1
        return model(x) * (torch.nan if steps == 13 else 1)

    with pytest.raises(ConversionError, match=r"loss became nan at step 13; try"):
        pr.distill_(student, teacher, list(inputs.split(100)), steps=800, forward=forward, progress=False)
    # read after ten steps, and after ten more
    assert steps == 20
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())


def test_hidden_states_are_those_of_the_repeated_blocks():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList(nn.ModuleDict({"fc": nn.Linear(64, 64)}) for _ in range(2))
            self.head = nn.Linear(64, 64)

    net = Net()
    student = copy.deepcopy(net)
    pr.sketch_(student, ratio=0.6)
    assert hidden_names(student, net) == ["blocks.0", "blocks.1"]
    pr.sketch_(net, ratio=0.6, skip="blocks")
    assert hidden_names(net, student) == ["head"]


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"steps": 0}, ValueError, r"steps \(0\)"),
        ({"lr": 0.0}, ValueError, r"lr \(0.0\)"),
        ({"hidden_weight": -1}, ValueError, r"hidden_weight \(-1\)"),
        ({"patience": 0}, ValueError, r"patience \(0\)"),
        ({"train": "norms"}, ValueError, r"train \('norms'\) must be 'all' or 'sketched'"),
    ],
)
def test_refuses(pair, inputs, arguments, error, match):
    with pytest.raises(error, match=match):
        pr.distill_(*pair, [inputs], progress=False, **arguments)


def test_refuses_a_student_without_sketched_layers(mlp, inputs):
    with pytest.raises(ConversionError, match=r"no sketched or quantized layer to train; convert"):
        pr.distill_(mlp, mlp, [inputs])
    student = copy.deepcopy(mlp)
    pr.sketch_(student, ratio=0.5)
    with pytest.raises(ConversionError, match="loader holds no batch"):
        pr.distill_(student, mlp, [])


class Texts(nn.Module):
    """A table of embeddings, a sketched layer, a normalization and a head."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(50, 64)
        self.fc = nn.Linear(64, 64)
        self.norm = nn.LayerNorm(64)
        self.head = nn.Linear(64, 5)

    def forward(self, ids):
        return self.head(self.norm(self.fc(self.table(ids)).relu()).mean(1))


def test_all_trains_everything_but_tables_and_gains_more():
    torch.manual_seed(0)
    teacher = Texts()
    batches = list(torch.randint(50, (512, 12)).split(64))
    student = copy.deepcopy(teacher)
    pr.sketch_(student, ratio=0.55, filter_fn=lambda _, name: name == "fc")
    other = copy.deepcopy(student)
    before = copy.deepcopy(student.state_dict())
    alone = pr.distill_(other, teacher, batches, steps=40, train="sketched", progress=False)
    result = pr.distill_(student, teacher, batches, steps=40, progress=False)
    changed = {name for name, value in student.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"fc.S1s", "fc.S2s", "fc.bias", "norm.weight", "norm.bias", "head.weight", "head.bias"}
    assert result.error < alone.error < result.error_before


@pytest.mark.parametrize("shard", [False, True])
def test_goes_on_after_a_kill_as_if_there_had_been_none(pair, inputs, tmp_path, shard):
    student, teacher = pair
    batches = list(inputs.split(50))
    options = {"steps": 40, "patience": 40, "progress": False, "shard": shard}

    def distill(folder, die_at=None, **more):
        forward = DyingForward(die_at)
        made = copy.deepcopy(student)
        return made, pr.distill_(
            made, teacher, batches, checkpoints=tmp_path / folder, forward=forward, **options | more
        )

    whole, expected = distill("whole")
    with pytest.raises(Killed):
        distill("killed", die_at=60)
    resumed, result = distill("killed")
    assert (result.steps, result.best_step) == (expected.steps, expected.best_step)
    assert (result.error_before, result.error) == (expected.error_before, expected.error)
    assert all(torch.equal(value, whole.state_dict()[name]) for name, value in resumed.state_dict().items())
    # finished: the student's values are read, not trained again
    again, _ = distill("killed", die_at=12)
    assert all(torch.equal(value, whole.state_dict()[name]) for name, value in again.state_dict().items())
    with pytest.raises(ValueError, match=r"of a run with steps 40, lr 0\.005; this one has steps 30, lr 0\.01\. Use"):
        distill("killed", steps=30, lr=0.01)
    with torch.no_grad():
        teacher[4].weight.mul_(2)
    with pytest.raises(ValueError, match="with another teacher or other inputs: the norm of the outputs is"):
        distill("killed")
    assert distill("killed", resume=False)[1].error_before != expected.error_before


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_mixed_precision_gains_as_much(pair, inputs, precision):
    student, teacher = pair
    seen = set()
    other = copy.deepcopy(student)
    full = pr.distill_(student, teacher, list(inputs.split(50)), steps=40, progress=False)
    other[0].register_forward_hook(lambda module, args, output: seen.add(output.dtype))
    result = pr.distill_(other, teacher, list(inputs.split(50)), steps=40, precision=precision, progress=False)
    # measured in float32
    assert seen == {getattr(torch, precision), torch.float32}
    assert result.error_before - result.error > 0.8 * (full.error_before - full.error)
    assert {parameter.dtype for parameter in other.parameters()} == {torch.float32}
    with pytest.raises(ValueError, match=r"precision \('int8'\) must be"):
        pr.distill_(student, teacher, [inputs], precision="int8")
