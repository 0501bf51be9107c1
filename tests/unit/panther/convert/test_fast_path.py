"""torch's fast path of nn.TransformerEncoder, which writes zeros at padded places: kept by a conversion."""

from __future__ import annotations

import copy
import pickle
import warnings

import pytest
import torch
from torch import nn

import panther as pr
from panther.convert.fast_path import observing, zeros_at_padding

pytestmark = pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")


class Pooled(nn.Module):
    def __init__(self, norm=None, **options):
        super().__init__()
        layer = nn.TransformerEncoderLayer(64, 4, 256, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, norm=norm, **options)
        self.head = nn.Linear(64, 48)

    def forward(self, x, padding):
        return self.head(self.encoder(x, src_key_padding_mask=padding).mean(1))


def batch(rows=16, length=12, *, aligned=True):
    lengths = torch.randint(2, length // 2, (rows, 1))
    padding = torch.arange(length) >= lengths
    padding[0] = False
    return torch.randn(rows, length, 64), padding if aligned else padding.flip(1)


def relative(model, original, batches):
    with torch.no_grad():
        pairs = [(original(*each), model(*each)) for each in batches]
    lost = sum((y - y_hat).double().square().sum() for y, y_hat in pairs)
    return (lost / sum(y.double().square().sum() for y, _ in pairs)).sqrt().item()


@pytest.mark.parametrize("norm", [None, nn.LayerNorm(64)], ids=["plain", "norm"])
@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("mask_check", [True, False])
def test_the_report_says_what_a_caller_measures(norm, aligned, mask_check):
    torch.manual_seed(0)
    norm = copy.deepcopy(norm)
    if norm is not None:
        nn.init.normal_(norm.bias)
    model = Pooled(norm, mask_check=mask_check).eval()
    original = copy.deepcopy(model)
    batches = [batch(aligned=aligned or not mask_check) for _ in range(4)]
    report = pr.sketch_(model, max_error=0.05, calibration=batches)
    assert any(name.startswith("encoder") for name in report.replaced)
    measured = relative(model, original, batches)
    assert report.output_error == pytest.approx(measured, rel=1e-3, abs=1e-6)
    assert measured <= 0.05
    assert any("writes zeros at padded places" in note for note in report.notes)


def test_an_encoder_that_takes_no_fast_path_gets_no_zeros():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(64, 4, 256, batch_first=True, norm_first=True)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    x, padding = batch()
    report = pr.sketch_(
        model, ratio=0.8, calibration=[x], forward=lambda net, rows: net(rows, src_key_padding_mask=padding)
    )
    assert report.replaced
    assert not any("zeros" in note for note in report.notes)
    with torch.no_grad():
        assert bool((model(x, src_key_padding_mask=padding)[padding].abs().sum(1) > 0).all())


def converted():
    torch.manual_seed(0)
    model = Pooled().eval()
    x, padding = batch()
    pr.sketch_(model, ratio=0.8, calibration=[(x, padding)])
    return model, x, padding


def test_zeros_come_where_the_original_would_write_them():
    model, x, padding = converted()
    encoder, original = model.encoder, Pooled().eval().encoder

    def padded(net, hidden=padding, **kwargs):
        return net(x, src_key_padding_mask=hidden, **kwargs)[padding].abs().sum(1) > 0

    for net in (encoder, original):
        with torch.no_grad():
            assert not bool(padded(net).any())
            assert not bool(padded(net, padding.float().masked_fill(padding, -torch.inf)).any())
        assert bool(padded(net).all()), "with gradients torch takes the slow path"
        net.requires_grad_(requires_grad=False)
        assert not bool(padded(net).any())
        net.train()
        assert bool(padded(net).all())
        net.eval()
        with torch.no_grad():
            square = torch.zeros(12, 12)
            assert bool(padded(net, padding.float().masked_fill(padding, -torch.inf), mask=square).all())
    assert not padded(copy.deepcopy(encoder)).any()
    assert not padded(pickle.loads(pickle.dumps(encoder))).any()


def test_a_second_conversion_installs_no_second_hook():
    model, x, padding = converted()
    pr.sketch_(model, ratio=0.9, calibration=[(x, padding)])
    assert list(model.encoder._forward_hooks.values()).count(zeros_at_padding) == 1


def test_a_failed_conversion_leaves_no_hook():
    model = Pooled().eval()
    with pytest.raises(ZeroDivisionError):
        pr.sketch_(model, ratio=0.8, calibration=[batch()], on_step=lambda what, *_: 1 / (what != "comparing"))
    assert not model.encoder._forward_hooks
    assert model.encoder.use_nested_tensor


def test_observation_computes_what_inference_does_and_leaves_nothing_behind():
    torch.manual_seed(0)
    model = Pooled().eval()
    x, padding = batch()
    with torch.no_grad():
        expected = model(x, padding)
    with observing(model):
        assert not torch.backends.mha.get_fastpath_enabled()
        torch.testing.assert_close(model(x, padding), expected, atol=1e-5, rtol=1e-5)
    assert torch.backends.mha.get_fastpath_enabled()
    assert not model.encoder._forward_hooks


def test_an_export_holds_the_zeros_row_by_row():
    model, x, padding = converted()
    with torch.no_grad():
        alone = torch.cat([model(x[i : i + 1], padding[i : i + 1]) for i in range(len(x))])
        program = torch.export.export(model, (x, padding))
    torch.testing.assert_close(program.module()(x, padding), alone, atol=1e-5, rtol=1e-5)


def test_the_prototype_warning_of_torch_does_not_stop_a_conversion():
    torch.manual_seed(0)
    model = Pooled().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert pr.sketch_(model, ratio=0.8, calibration=[batch()]).replaced
