"""What convolutions become under a budget, and what the file of it holds."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

import panther as pr
from panther.compression.convolutions import ConvolutionOptions
from panther.compression.options import FLOAT, INT4, INT8, LOW_RANK, LOW_RANK_INT4, LOW_RANK_INT8
from panther.convert.calibration import collect
from panther.convert.deviation import Reference
from panther.convert.errors import ConversionError
from panther.convert.layers import find_units
from panther.convert.plan import model_size
from panther.convert.spill import Keeper
from panther.nn import SKConv2d
from panther.nn.quantized import StoredConv


class Network(nn.Module):
    """Convolutions with falling spectra, a depthwise one, a 1x1 one that is called twice, and a classifier."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 24, 3, padding=1), nn.BatchNorm2d(24)
        self.narrow = nn.Conv2d(24, 48, 3, stride=2, padding=1)
        self.depthwise = nn.Conv2d(48, 48, 3, padding="same", groups=48, padding_mode="reflect", bias=False)
        self.pointwise = nn.Conv2d(48, 48, 1)
        self.top = nn.Linear(48, 5)
        with torch.no_grad():
            for conv in (self.narrow, self.pointwise):
                U, S, V = torch.linalg.svd(conv.weight.flatten(1), full_matrices=False)
                conv.weight.copy_(((U * S * torch.arange(1, len(S) + 1) ** -0.7) @ V).view_as(conv.weight) * 3)

    def forward(self, x):
        x = torch.relu(self.norm(self.stem(x)))
        x = torch.relu(self.depthwise(torch.relu(self.narrow(x))))
        x = self.pointwise(torch.relu(self.pointwise(x)))
        return self.top(x.mean((2, 3)))


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    net = Network().train()
    x = torch.randn(48, 3, 12, 12) + 2 * torch.randn(48, 3, 1, 1)
    with torch.no_grad():
        net(x)
    return net.eval(), x


def compress(network, **options):
    net, x = network
    return pr.compress(net, calibration=x.split(24), **({"probes": 2} | options))


def kinds_of(compressed):
    return {layer.name: layer.kind for layer in compressed.report.layers}


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (INT8, StoredConv),
        (INT4, StoredConv),
        (LOW_RANK, SKConv2d),
        (LOW_RANK_INT8, StoredConv),
        (LOW_RANK_INT4, StoredConv),
    ],
)
def test_each_kind_alone_keeps_an_error_and_is_exported(network, kind, expected, tmp_path):
    net, x = network
    found = compress(network, kinds=[kind], max_error=0.1)
    assert type(found.model.narrow) is expected
    assert kinds_of(found)["narrow"] == kind
    assert (type(found.model.depthwise) is StoredConv) == (kind in (INT8, INT4))
    assert found.report.bytes_after == model_size(found.model)[1] < found.report.bytes_before
    assert found.report.output_error <= 0.1
    with torch.no_grad():
        y, y_hat = net(x), found.model(x)
    assert float((y - y_hat).norm() / y.norm()) == pytest.approx(found.report.output_error, rel=0.05)
    report = found.export(tmp_path / "m.onnx", name="m", num_threads=1, batch_sizes=(1,))
    assert report.card.check.max_relative_error < 1e-4
    session = onnxruntime.InferenceSession(str(report.path), providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(None, {"x": x.numpy()})[0], y_hat.numpy(), atol=1e-4)


def test_the_report_is_in_the_order_of_the_model_and_names_reasons(network):
    found = compress(network, kinds=[LOW_RANK], max_error=0.1)
    assert [layer.name for layer in found.report.layers] == ["stem", "narrow", "depthwise", "pointwise", "top"]
    by_name = {layer.name: layer for layer in found.report.layers}
    assert by_name["narrow"].layer == "convolution"
    assert by_name["narrow"].shape == (48, 24 * 9)
    assert by_name["depthwise"].reason.startswith("depthwise")
    assert {group.kind for group in found.report.unreached} == {"BatchNorm2d"}


def test_all_kinds_meet_a_budget_of_bytes_and_the_file_takes_no_more(network, tmp_path):
    net, _ = network
    size = model_size(net)[1]
    found = compress(network, max_bytes=int(0.2 * size))
    assert found.report.bytes_after <= 0.2 * size
    assert found.report.output_error < 0.1
    report = found.export(tmp_path / "m.onnx", name="m", num_threads=1, batch_sizes=(1,))
    stored = {
        tensor.name: onnx.numpy_helper.to_array(tensor).nbytes for tensor in onnx.load(report.path).graph.initializer
    }
    # shapes and the constants of batch normalization are besides
    assert sum(stored.values()) <= found.report.bytes_after + 400
    entries = {entry.name for entry in report.card.quantized_layers if entry.kind == "convolution"}
    pairs = {name for name, module in found.model.named_modules() if isinstance(module, StoredConv) and module.rank}
    assert {f"{name}.{part}" for name in pairs for part in ("first", "second")} <= entries
    dense = sum(parameter.numel() for parameter in net.parameters())
    assert report.card.totals.model.dense == dense
    assert report.card.totals.model.learnable < dense


def test_predicted_errors_are_those_of_the_model_with_one_layer_replaced(network):
    net, x = network
    batches = list(x.split(24))
    units = [unit for unit in find_units(net, None, (), convolutions=True) if unit.convolution is not None]
    active = [unit for unit in units if unit.reason is None]
    moments = collect(net, active, batches, None, probes=16, generator=torch.Generator().manual_seed(0))
    by_unit, reference = dict(zip(map(id, active), moments, strict=True)), Reference(net, batches, None)
    options = ConvolutionOptions(net, units, by_unit, Keeper(), reference, len(x), [INT8, LOW_RANK, LOW_RANK_INT8])
    checked = 0
    for part in options.parts(lambda *_: None):
        kinds = [option.kind for option in part.options]
        assert kinds[0] == FLOAT
        for option in part.options[1:]:
            (place, made), *_ = option.make()
            parent, _, child = place.names[0].rpartition(".")
            owner = net.get_submodule(parent)
            setattr(owner, child, made)
            measured = reference.deviation(net).error
            setattr(owner, child, place.module)
            if measured > 0.005:
                # positions are taken for independent: no more than an estimate
                assert 0.3 < option.error**0.5 / measured < 3, (part.name, option.label)
                checked += 1
            assert option.bytes == sum(tensor.nbytes for tensor in (*made.parameters(), *made.buffers()))
    assert checked >= 5


def test_a_speedup_is_measured_with_the_convolutions(network):
    found = compress(network, speedup=1.02, batch_size=8)
    assert found.report.speed.before_us > 0
    assert found.report.speed.speedup > 1 or found.report.notes


def test_a_network_of_depthwise_convolutions_alone_is_stored_in_few_bits():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv1d(16, 16, 5, groups=16), nn.ReLU(), nn.Conv1d(16, 16, 5, groups=16)).eval()
    x = torch.randn(12, 16, 20)
    found = pr.compress(net, calibration=x.split(6), max_error=0.05)
    assert INT8 in {layer.kind for layer in found.report.layers} <= {INT4, INT8}
    found = pr.compress(net, calibration=x.split(6), max_error=0.3)
    assert {layer.kind for layer in found.report.layers} == {INT4}


def test_a_convolution_of_wide_patches_is_stored_in_8_bits_without_their_covariance():
    torch.manual_seed(0)
    wide = nn.Sequential(
        nn.Conv1d(1, 1024, 1), nn.ReLU(), nn.Conv1d(1024, 8, 17), nn.Flatten(), nn.Linear(32, 4)
    ).eval()
    x = torch.randn(6, 1, 20)
    found = pr.compress(wide, calibration=x, max_error=0.05, kinds=("int8",))
    assert type(found.model[2]) is StoredConv
    assert (found.model(x) - wide(x)).norm() <= 0.05 * wide(x).norm()


def test_grouped_convolutions_that_share_a_weight_stay():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv1d(16, 16, 5, groups=16), nn.ReLU(), nn.Conv1d(16, 16, 5, groups=16), nn.Flatten())
    net[2].weight = net[0].weight
    net.append(nn.Linear(16 * 12, 40)).eval()
    found = pr.compress(net, calibration=torch.randn(12, 16, 20).split(6), max_error=0.1)
    assert type(found.model[0]) is type(found.model[2]) is nn.Conv1d
    assert found.model[0].weight is found.model[2].weight
    assert "share one weight" in {layer.name: layer.reason for layer in found.report.layers}["0"]
    assert found.report.bytes_after == model_size(found.model)[1]


def test_a_grouped_weight_that_is_not_finite_is_left_and_named():
    net = nn.Sequential(nn.Conv1d(4, 4, 3, groups=4), nn.Flatten(), nn.Linear(4 * 6, 40)).eval()
    with torch.no_grad():
        net[0].weight[0] = torch.nan
    (unit, _) = find_units(net, None, (), convolutions=True)
    assert unit.reason == "its weight holds values that are not finite"


def test_what_can_not_be_stored_in_fewer_bits_says_why():
    class Own(nn.Conv2d):
        def forward(self, x):
            return 2 * super().forward(x)

    net = nn.Sequential(Own(3, 4, 3), nn.ReLU()).eval()
    with pytest.raises(ConversionError, match=r"no linear layer, convolution or embedding.*does more than nn\.Conv2d"):
        pr.compress(net, calibration=torch.randn(4, 3, 8, 8), max_error=0.1)
