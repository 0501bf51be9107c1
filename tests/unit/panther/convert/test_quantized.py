"""Quantization-aware training, in `distill_`."""

import copy

import pytest
import torch
from torch import nn

import panther as pr
from panther.convert import ConversionError
from panther.convert.quantized import is_stored, is_training, training
from panther.nn import SKLinear
from panther.nn.quantized import BlockLinear, Int8Linear, StoredConv
from panther.quantize import Blocks


def error(student, teacher, x):
    with torch.no_grad():
        y = teacher(x)
        return ((student(x) - y).norm() / y.norm()).item()


@pytest.fixture
def many():
    generator = torch.Generator().manual_seed(3)
    mix = torch.randn(96, 96, generator=generator) * torch.arange(1, 97) ** -0.5
    return torch.randn(2400, 96, generator=generator) @ mix.t()


@pytest.mark.parametrize(
    "weights", ["int4", Blocks(bits=4, correction_rank=8), "int8"], ids=["int4", "corrected", "int8"]
)
def test_a_badly_rounded_student_gets_close_to_the_teacher_with_the_same_bytes(mlp, many, weights):
    student = copy.deepcopy(mlp)
    # calibrated on inputs of another distribution
    unlike = torch.rand(100, 96, generator=torch.Generator().manual_seed(0)) * many.abs().max()
    report = pr.quantize_(student, calibration=unlike.split(50), weights=weights)
    quantized = {name: type(module) for name, module in student.named_modules()}
    size = sum(tensor.nbytes for tensor in student.state_dict().values())
    before = error(student, mlp, many[1800:])
    result = pr.distill_(student, mlp, many[:1800].split(100), steps=200, progress=False)
    assert result.error < result.error_before
    assert error(student, mlp, many[1800:]) < 0.8 * before
    assert {name: type(module) for name, module in student.named_modules()} == quantized
    assert sum(tensor.nbytes for tensor in student.state_dict().values()) == size
    assert report.bytes_after < report.bytes_before


def test_low_rank_factors_in_4_bits_are_trained(mlp, many):
    student = copy.deepcopy(mlp)
    pr.sketch_(student, ratio=0.5, calibration=many[:400].split(100))
    pr.quantize_(student, calibration=many[:400].split(100), weights="int4")
    before = error(student, mlp, many[1800:])
    pr.distill_(student, mlp, many[:1800].split(100), steps=300, hidden_weight=0, progress=False)
    assert error(student, mlp, many[1800:]) < 0.95 * before


def test_the_exported_file_computes_what_was_trained(mlp, many, tmp_path):
    from panther.export import export_onnx

    student = copy.deepcopy(mlp)
    pr.quantize_(student, calibration=many[:400].split(100), weights="int4")
    pr.distill_(student, mlp, many[:1800].split(100), steps=60, hidden_weight=0, progress=False)
    export_onnx(student, many[:8], tmp_path / "small.onnx", name="small", num_threads=1, batch_sizes=(1,))
    import onnxruntime

    session = onnxruntime.InferenceSession(tmp_path / "small.onnx", providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: many[:8].numpy()})
    with torch.no_grad():
        assert torch.allclose(torch.tensor(found), student(many[:8]), atol=1e-3)


def test_convolutions_in_bits_are_trained():
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Conv2d(4, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.Flatten())
    x = torch.randn(240, 4, 8, 8)
    student = copy.deepcopy(teacher)
    pr.quantize_(student, calibration=x[:20].split(10), weights="int4")
    assert isinstance(student[2], StoredConv)
    with torch.no_grad():
        teacher[2].weight.mul_(0.85)
    before = student[2].first.weight.clone()
    result = pr.distill_(student, teacher, x.split(20), steps=200, hidden_weight=0, patience=20, progress=False)
    assert result.error < 0.8 * result.error_before
    assert not torch.equal(student[2].first.weight, before)


def test_an_error_leaves_the_quantized_layers_as_they_were(mlp, many):
    student = copy.deepcopy(mlp)
    pr.quantize_(student, calibration=many[:200].split(100))
    modules = dict(student.named_modules())
    before = copy.deepcopy(student.state_dict())
    steps = 0

    def forward(model, x):
        nonlocal steps
        steps += model is student and torch.is_grad_enabled()
        if steps > 30:
            raise KeyError("a failure")
        return model(x)

    with pytest.raises(KeyError, match="a failure"):
        pr.distill_(student, mlp, many.split(100), steps=100, forward=forward, progress=False)
    assert dict(student.named_modules()) == modules
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())


def test_a_hopeless_step_size_keeps_the_integers(mlp, many):
    student = copy.deepcopy(mlp)
    pr.quantize_(student, calibration=many[:200].split(100), weights="int4")
    before = copy.deepcopy(student.state_dict())
    result = pr.distill_(student, mlp, many.split(100), steps=40, lr=30.0, patience=3, progress=False)
    assert result.best_step == 0
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())


def test_resumes_in_bits(mlp, many, tmp_path):
    from helpers.training import DyingForward, Killed

    options = {"steps": 40, "progress": False, "checkpoints": tmp_path}
    quantized = copy.deepcopy(mlp)
    pr.quantize_(quantized, calibration=many[:200].split(100), weights="int4")
    whole, student = copy.deepcopy(quantized), copy.deepcopy(quantized)
    pr.distill_(whole, mlp, many.split(100), steps=40, progress=False)
    with pytest.raises(Killed):
        pr.distill_(student, mlp, many.split(100), forward=DyingForward(60), **options)
    pr.distill_(student, mlp, many.split(100), **options)
    assert all(torch.equal(value, whole.state_dict()[name]) for name, value in student.state_dict().items())


def test_a_model_is_as_before_outside_of_the_training(mlp, many):
    pr.quantize_(mlp, calibration=many[:200].split(100))
    assert not is_training(mlp)
    with training(mlp):
        assert is_training(mlp)
        assert not isinstance(mlp[0], Int8Linear)
    assert not is_training(mlp)
    assert isinstance(mlp[0], Int8Linear)


def test_a_layer_that_is_held_twice_stays_one(mlp, many):
    model = nn.ModuleDict({"a": mlp[0], "b": mlp[0]})
    shared = nn.Sequential(nn.Linear(96, 96), nn.ReLU())
    model = nn.Sequential(shared, shared, nn.Linear(96, 4))
    teacher = copy.deepcopy(model)
    pr.quantize_(model, calibration=many[:200].split(100), weights="int4")
    pr.distill_(model, teacher, many.split(100), steps=20, hidden_weight=0, progress=False)
    assert model[0][0] is model[1][0]
    assert isinstance(model[0][0], BlockLinear)


def test_terms_in_bits_beside_signs_stay_and_their_bias_learns(many):
    torch.manual_seed(0)
    teacher = nn.Sequential(SKLinear(96, 64, 1, 16), nn.ReLU(), nn.Linear(64, 4))
    student = copy.deepcopy(teacher)
    assert not is_stored(student[0])
    pr.quantize_(student, calibration=many[:200].split(100), weights="int4")
    assert is_stored(student[0])
    S1s, bias = student[0].S1s.clone(), student[0].bias.clone()
    pr.distill_(student, teacher, many.split(100), steps=60, hidden_weight=0, progress=False)
    assert torch.equal(student[0].S1s, S1s)
    assert not torch.equal(student[0].bias, bias)


def test_a_student_without_converted_layers_is_refused(mlp, many):
    with pytest.raises(ConversionError, match="no sketched or quantized layer"):
        pr.distill_(copy.deepcopy(mlp), mlp, many.split(100), progress=False)
