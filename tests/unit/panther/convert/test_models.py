"""Models of many makes, and the traps in them."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

import panther as pr
from panther.nn import SKLinear


def relative(y_hat, y):
    return ((y_hat - y).norm() / y.norm()).item()


class Shared(nn.Module):
    """One module in two places, and two modules that tie one weight."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(64, 64)
        self.again = self.first
        self.a, self.b = nn.Linear(64, 64), nn.Linear(64, 64)
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.b(torch.tanh(self.a(torch.tanh(self.again(torch.tanh(self.first(x)))))))


@pytest.mark.parametrize("calibrated", [True, False])
def test_shared_and_tied_weights_stay_so_and_count_once(calibrated):
    torch.manual_seed(0)
    model = Shared()
    model.b.bias.data += 1
    original = copy.deepcopy(model)
    x = torch.randn(200, 64)
    report = pr.sketch_(model, ratio=0.6, calibration=x if calibrated else None)
    assert model.first is model.again
    assert model.a is not model.b
    for term in ("S1s", "S2s", "U1s", "U2s"):
        assert getattr(model.a, term) is getattr(model.b, term)
    assert model.a.bias is not model.b.bias
    if not calibrated:
        torch.testing.assert_close(model.b.bias, original.b.bias)
    assert sorted(report.replaced) == ["a", "again", "b", "first"]
    assert report.before.stored == 2 * 64 * 64 + 3 * 64
    held = {t.data_ptr(): t.numel() for t in (*model.parameters(), *model.buffers())}
    assert sum(held.values()) == report.after.stored == report.model_parameters_after
    model(x).square().sum().backward()
    assert model.a.S1s.grad is model.b.S1s.grad
    assert model.a._packed is not None
    assert model.b._packed is not None


def test_a_weight_that_is_an_embedding_too_stays():
    torch.manual_seed(0)

    class Language(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(100, 64)
            self.body = nn.Linear(64, 64)
            self.head = nn.Linear(64, 100, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, ids):
            return self.head(self.body(self.embed(ids)))

    model = Language()
    report = pr.sketch_(model, ratio=0.9, calibration=torch.randint(0, 100, (8, 10)))
    assert report.replaced == ("body",)
    assert "also that of embed" in report.kept["head"]
    assert model.head.weight is model.embed.weight


@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("with_padding", [True, False])
@pytest.mark.parametrize("calibrated", [True, False])
def test_the_fast_path_of_the_encoder_is_left(norm_first, with_padding, calibrated):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(64, 4, 128, dropout=0.0, batch_first=True, norm_first=norm_first)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=not norm_first).eval()
    original = copy.deepcopy(model)
    x = torch.randn(6, 9, 64)
    padding = torch.zeros(6, 9, dtype=torch.bool)
    if with_padding:
        padding[:, 6:] = True
    kwargs = {"src_key_padding_mask": padding} if with_padding else {}
    report = pr.sketch_(
        model,
        ratio=0.62,
        calibration=[x] if calibrated else None,
        forward=lambda module, batch: module(batch, **kwargs)[~padding],
    )
    assert "layers.0.linear1" in report.replaced
    assert any("self_attn" in name for name in report.replaced)
    calls = []
    model.layers[0].linear1.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        fast = model(x, **kwargs)[~padding]
    assert calls == [1]
    model.train()
    torch.testing.assert_close(fast, model(x, **kwargs)[~padding], atol=1e-5, rtol=1e-5)
    assert relative(fast, original(x, **kwargs)[~padding]) < 0.5


def test_an_undone_conversion_gives_the_fast_path_back():
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(64, 4, 128, batch_first=True), 2).eval()
    flags = [(layer.activation_relu_or_gelu, model.use_nested_tensor) for layer in model.layers]
    with pytest.raises(ZeroDivisionError):
        pr.sketch_(
            model, ratio=0.8, calibration=torch.randn(2, 3, 64), on_step=lambda what, *_: 1 / (what != "comparing")
        )
    assert flags == [(layer.activation_relu_or_gelu, model.use_nested_tensor) for layer in model.layers]


def parametrised():
    return parametrizations.orthogonal(nn.Linear(64, 64))


def spectral():
    return nn.utils.parametrizations.spectral_norm(nn.Linear(64, 64))


def pruned():
    return prune.l1_unstructured(nn.Linear(64, 64), "weight", amount=0.5)


class Scaled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def replaced_forward():
    linear = nn.Linear(64, 64)
    linear.forward = lambda x: nn.functional.linear(x, linear.weight)
    return linear


def adapted():
    linear = nn.Linear(64, 64)
    linear.adapter = nn.Linear(64, 2)
    return linear


def not_finite():
    linear = nn.Linear(64, 64)
    linear.weight.data[0, 0] = torch.nan
    return linear


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (parametrised, "remove_parametrizations gives it a plain one"),
        (spectral, "parametrised"),
        (pruned, "prune.remove gives it a plain one"),
        (lambda: Scaled(64, 64), "Scaled does more than nn.Linear"),
        (adapted, "Linear holds more than nn.Linear does: adapter"),
        (replaced_forward, "more than nn.Linear in its forward"),
        (not_finite, "not finite"),
        (lambda: nn.Linear(64, 64, device="meta"), "'meta'"),
        (lambda: nn.LazyLinear(64), "call the model once before"),
    ],
)
def test_what_is_no_plain_linear_stays_with_the_reason(make, match):
    model = nn.Sequential(nn.Linear(64, 64), make())
    odd = model[1]
    report = pr.sketch_(model, ratio=0.9, skip=())
    assert model[1] is odd
    assert match in report.kept["1"]
    assert report.replaced == ("0",)


def test_modules_that_read_the_weight_still_work_and_are_left_dense_when_seen():
    class Reads(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.used = nn.Linear(64, 64), nn.Linear(64, 64)

        def forward(self, x):
            return self.used(nn.functional.linear(x, self.fc.weight, self.fc.bias))

    torch.manual_seed(0)
    seen, unseen = Reads(), Reads()
    x = torch.randn(50, 64)
    assert "never called" in pr.sketch_(seen, ratio=0.9, calibration=x).kept["fc"]
    original = copy.deepcopy(unseen)
    assert "fc" in pr.sketch_(unseen, ratio=0.55).replaced
    expected = original.used(nn.functional.linear(x, unseen.fc.dense_weight(), original.fc.bias))
    assert relative(unseen(x), expected) < 0.6


def test_conv1d_of_transformers():
    pytorch_utils = pytest.importorskip("transformers.pytorch_utils")
    torch.manual_seed(0)
    model = nn.Sequential(pytorch_utils.Conv1D(192, 64), nn.Tanh(), pytorch_utils.Conv1D(64, 192))
    original = copy.deepcopy(model)
    x = torch.randn(100, 5, 64)
    report = pr.sketch_(model, ratio=0.9, calibration=x)
    assert report.replaced
    assert (report.layers[0].in_features, report.layers[0].out_features) == (64, 192)
    assert report.output_error == pytest.approx(relative(model(x), original(x)), rel=1e-3)
    assert report.output_error < 0.3


def test_hooks_move_over(mlp, inputs):
    seen = []
    mlp[0].register_forward_hook(lambda module, *_: seen.append(type(module)))
    pr.sketch_(mlp, ratio=0.5)
    mlp(inputs)
    assert seen == [SKLinear]


def test_a_transformers_model_is_called_by_name_with_its_mask():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128
    )
    model = transformers.BertModel(config).eval()
    ids = torch.randint(0, 50, (6, 12))
    mask = (torch.arange(12) < torch.tensor([[12], [5], [7], [12], [3], [9]])).long()
    batch = {"input_ids": ids, "attention_mask": mask, "labels": torch.zeros(6)}
    original = copy.deepcopy(model)
    report = pr.sketch_(model, ratio=0.7, calibration=[batch])
    assert len(report.replaced) >= 8
    y, y_hat = (net(ids, attention_mask=mask) for net in (original, model))
    errors = [
        relative(getattr(y_hat, k)[i], getattr(y, k)[i])
        for k, i in (("last_hidden_state", mask.bool()), ("pooler_output", slice(None)))
    ]
    assert report.output_error == pytest.approx((sum(e**2 for e in errors) / 2) ** 0.5, rel=1e-3)
