"""nn.MultiheadAttention: opened for the conversion, left as it was where nothing of it was converted."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import panther as pr
from panther.convert.opened import opened
from panther.nn import SKLinear
from panther.nn.attention import ProjectedAttention


class Cross(nn.Module):
    """Attention over another sequence, with widths of its own, and its weights among the outputs."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(64, 4, kdim=48, vdim=32, dropout=0.1, batch_first=True)
        self.out = nn.Linear(64, 64)

    def forward(self, x, memory):
        y, weights = self.attention(x, memory, memory[..., :32], attn_mask=torch.ones(6, 9).triu(4) * -1e4)
        return self.out(y), weights


def inputs(count=32):
    random = torch.Generator().manual_seed(2)
    mix = torch.randn(4, 64, generator=random)
    return (
        torch.randn(count, 6, 4, generator=random) @ mix,
        torch.randn(count, 9, 4, generator=random) @ mix[:, :48],
    )


def make():
    torch.manual_seed(0)
    return Cross().eval()


def test_separate_weights_and_returned_weights(tmp_path):
    model, batch = make(), inputs()
    original = copy.deepcopy(model)
    report = pr.sketch_(model, ratio=0.6, calibration=[batch])
    assert {"attention.q_proj", "attention.k_proj"} <= {layer.name for layer in report.layers}
    assert sum(layer.before.stored for layer in report.layers) == sum(p.numel() for p in original.parameters())
    assert report.unreached == ()
    assert isinstance(model.attention, ProjectedAttention)
    with torch.no_grad():
        for y, expected in zip(model(*batch), original(*batch), strict=True):
            assert (y - expected).norm() < 0.1 * expected.norm()
    pr.save(model, tmp_path / "small.safetensors")
    fresh = make()
    assert set(pr.restore_(fresh, tmp_path / "small.safetensors")) == set(report.replaced)
    assert torch.equal(fresh(*batch)[0], model(*batch)[0])
    assert report.model_parameters_after == sum(p.numel() for p in model.parameters()) + sum(
        b.numel() for b in model.buffers()
    )


def test_an_attention_without_a_converted_projection_is_left_as_it_was():
    model, batch = make(), inputs()
    attention, before = model.attention, copy.deepcopy(model.state_dict())
    report = pr.sketch_(model, ratio=0.95, calibration=[batch], skip="attention")
    assert report.replaced == ("out",)
    assert model.attention is attention
    for name, value in attention.state_dict().items():
        assert torch.equal(value, before[f"attention.{name}"])


def test_on_an_error_the_attention_is_as_it_was(monkeypatch):
    model, batch = make(), inputs()
    attention, keys = model.attention, list(model.state_dict())

    def interrupted(*_):
        raise KeyboardInterrupt

    for where in ("panther.convert.plan.ways", "panther.convert.plan.layer_report"):
        with monkeypatch.context() as patch:
            patch.setattr(where, interrupted)
            with pytest.raises(KeyboardInterrupt):
                pr.sketch_(model, ratio=0.6, calibration=[batch])
        assert model.attention is attention
        assert list(model.state_dict()) == keys


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
def test_a_transformer_keeps_masks_zeros_at_padding_and_hooks():
    torch.manual_seed(0)
    model = nn.Transformer(64, 4, 1, 1, 128, batch_first=True, dropout=0.2).eval()
    calls = []
    model.encoder.layers[0].self_attn.register_forward_hook(lambda *_: calls.append(1))
    original = copy.deepcopy(model)
    src, target = (torch.randn(16, n, 4) @ torch.randn(4, 64) for n in (7, 5))
    padding = torch.zeros(16, 7, dtype=torch.bool)
    padding[:, 5:] = True
    causal = nn.Transformer.generate_square_subsequent_mask(5)

    def forward(module, batch):
        return module(
            *batch, tgt_mask=causal, tgt_is_causal=True, src_key_padding_mask=padding, memory_key_padding_mask=padding
        )

    report = pr.sketch_(model, ratio=0.6, calibration=[(src, target)], forward=forward)
    opened_now = [name for name, module in model.named_modules() if isinstance(module, ProjectedAttention)]
    assert len(opened_now) == 3
    assert sum(group.share for group in report.unreached) < 0.05
    with torch.no_grad():
        y, expected = forward(model, (src, target)), forward(original, (src, target))
        assert (y - expected).norm() == pytest.approx(report.output_error * expected.norm().item(), rel=1e-3)
        encoded = model.encoder(src, src_key_padding_mask=padding)
        reference = original.encoder(src, src_key_padding_mask=padding)
    assert torch.equal(encoded[padding], reference[padding])
    calls.clear()
    model(src, target)
    assert calls == [1]
    changed = target.clone()
    changed[:, 3:] += 1
    torch.testing.assert_close(forward(model, (src, changed))[:, :3], forward(model, (src, target))[:, :3])
    assert not torch.allclose(forward(model.train(), (src, target)), forward(model, (src, target)))


def test_distilled_and_exported(tmp_path):
    from panther.export import export_onnx

    torch.manual_seed(0)
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(64, 4, 128, batch_first=True), 1).eval()
    original = copy.deepcopy(model)
    x = torch.randn(512, 6, 64)
    pr.sketch_(model, ratio=0.45, calibration=[x[:64]])
    result = pr.distill_(model, original, x.split(32), steps=60, progress=False)
    assert result.error < result.error_before
    report = export_onnx(model, x[:4], tmp_path, name="m", num_threads=1, batch_sizes=(1,), plan="two_products")
    sketched = {name for name, module in model.named_modules() if isinstance(module, SKLinear)}
    assert {layer.name for layer in report.card.layers} == sketched
    assert report.card.check.max_relative_error < 1e-4


def test_which_attentions_are_opened():
    class Own(nn.MultiheadAttention):
        pass

    plain, tied = nn.MultiheadAttention(16, 2), nn.MultiheadAttention(16, 2)
    tied.in_proj_weight = plain.in_proj_weight
    assert opened(nn.Sequential(Own(16, 2))) == []
    assert opened(nn.Sequential(plain, tied)) == []
    alone = nn.MultiheadAttention(16, 2)
    (replacement,) = opened(nn.Sequential(alone, alone))
    assert replacement[0].names == ["0", "1"]
    assert opened(alone) == []
