"""Models whose other parts are unusual: hooks, parametrised weights, activations that the CPU lacks in float16."""

import copy

import onnxruntime
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from panther.export import export_onnx
from panther.nn import SKLinear

ROWS = torch.randn(20, 64, generator=torch.Generator().manual_seed(0))


def export(model, folder, **options):
    torch.manual_seed(0)
    return export_onnx(model, ROWS, folder, name="odd", plan="two_products", batch_sizes=[1], **options)


@pytest.mark.parametrize(
    "part",
    [
        nn.GELU(),
        nn.GELU("tanh"),
        nn.BatchNorm1d(64),
        nn.Sequential(nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 1, 3, padding=1), nn.Flatten()),
    ],
    ids=["GELU", "tanh", "BatchNorm", "Conv2d"],
)
def test_float16_takes_what_the_cpu_computes_in_float32(part, tmp_path):
    model = nn.Sequential(SKLinear(64, 64, 1, 8), copy.deepcopy(part), SKLinear(64, 64, 1, 8))
    assert export(model, tmp_path, precision="float16").card.check.max_relative_error < 2e-2


@pytest.mark.parametrize(
    "parametrise",
    [parametrizations.weight_norm, parametrizations.spectral_norm],
    ids=lambda function: function.__name__,
)
def test_a_parametrised_weight_of_the_same_shape_is_not_taken_for_a_folded_one(parametrise, tmp_path):
    model = nn.Sequential(parametrise(nn.Linear(64, 64)), nn.ReLU(), SKLinear(64, 64, 1, 8), nn.ReLU())
    (layer,) = export(model, tmp_path).card.layers
    assert layer.plan == "two_products"


def test_hooks_of_sketched_layers_are_part_of_the_model(tmp_path):
    model = nn.Sequential(SKLinear(64, 64, 1, 8), nn.ReLU(), SKLinear(64, 64, 1, 8)).eval()
    model[0].register_forward_pre_hook(lambda _, args: (args[0] + 1,))
    model[2].register_forward_hook(lambda _, args, kwargs, y: 2 * y, with_kwargs=True)
    session = onnxruntime.InferenceSession(export(model, tmp_path).path)
    (found,) = session.run(None, {"input": ROWS.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), model(ROWS).detach(), rtol=1e-4, atol=1e-5)


def test_a_hook_that_computes_a_weight_stays_with_the_layer(tmp_path):
    layer = prune.l1_unstructured(SKLinear(64, 64, 1, 8), "S1s", amount=0.5)
    with torch.no_grad():
        layer(ROWS)
    report = export(nn.Sequential(layer, nn.ReLU()), tmp_path)
    assert report.card.check.max_relative_error < 1e-4


def test_another_default_device_changes_nothing(tmp_path):
    model = nn.Sequential(SKLinear(64, 64, 1, 8), nn.ReLU())
    with torch.device("meta"):
        report = export(model, tmp_path)
    assert report.card.check.max_relative_error < 1e-4
