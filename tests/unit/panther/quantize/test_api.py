"""`quantize_` on small models: what it does, what it says, and what it leaves alone."""

import copy

import pytest
import torch
from helpers.pair_sums import largest_pair_sum
from torch import nn

import panther as pr
from panther.export import export_onnx
from panther.nn.quantized import Int8Embedding, Int8Linear
from panther.nn.quantized.grid import PAIR_LIMIT


class Encoder(nn.Module):
    """An embedding, two layers that read one tensor, and a channel that dwarfs the others before the last layer."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(400, 48)
        self.left, self.right = nn.Linear(48, 64), nn.Linear(48, 64)
        self.norm = nn.LayerNorm(64)
        self.head = nn.Linear(64, 10)
        with torch.no_grad():
            self.norm.weight[5] = 80.0
            self.head.weight[:, 5] /= 80.0

    def forward(self, tokens):
        h = self.table(tokens)
        return self.head(self.norm(torch.tanh(self.left(h)) + self.right(h)))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Encoder().eval()


@pytest.fixture
def tokens():
    return torch.randint(0, 400, (96, 6), generator=torch.Generator().manual_seed(2))


def error(model, other, x):
    with torch.no_grad():
        y, y_hat = model(x), other(x)
    return float((y - y_hat).norm() / y.norm())


def test_it_stays_close_on_held_out_inputs(model, tokens):
    original = copy.deepcopy(model)
    report = pr.quantize_(model, calibration=tokens[:64])
    assert isinstance(model.table, Int8Embedding)
    assert all(isinstance(layer, Int8Linear) for layer in (model.left, model.right, model.head))
    assert error(original, model, tokens[64:]) < 0.02
    assert report.output_error == pytest.approx(error(original, model, tokens[:64]), rel=1e-4)
    assert report.output_cosine > 0.9998


def test_outliers_cost_accuracy_without_smoothing(model, tokens):
    plain, smoothed = copy.deepcopy(model), copy.deepcopy(model)
    before = pr.quantize_(plain, calibration=tokens, alphas=(0.0,))
    after = pr.quantize_(smoothed, calibration=tokens)
    assert plain.head.smoothing is None
    assert smoothed.head.smoothing is not None
    assert after.output_error < 0.6 * before.output_error


def test_predicted_errors_add_up_to_the_measured_one(model, tokens):
    report = pr.quantize_(model, calibration=tokens, embedding_bits=None)
    predicted = sum(layer.predicted_error**2 for layer in report.quantized) ** 0.5
    assert report.output_error == pytest.approx(predicted, rel=0.4)


def test_a_row_does_not_depend_on_its_batch(model, tokens):
    pr.quantize_(model, calibration=tokens)
    with torch.no_grad():
        together = model(tokens)
        alone = torch.cat([model(row.unsqueeze(0)) for row in tokens])
    assert (together - alone).abs().max() <= 1e-6 * together.abs().max()


def test_layers_that_read_one_tensor_share_its_rounding(model, tokens):
    pr.quantize_(model, calibration=tokens)
    assert torch.equal(model.left.input_scale, model.right.input_scale)
    assert torch.equal(model.left.input_zero_point, model.right.input_zero_point)


def test_no_weight_saturates_avx2(model, tokens):
    pr.quantize_(model, calibration=tokens)
    assert max(largest_pair_sum(layer.weight_int8) for layer in (model.left, model.right, model.head)) <= PAIR_LIMIT


def test_max_error_leaves_the_costliest_layers_in_float(model, tokens):
    every = pr.quantize_(copy.deepcopy(model), calibration=tokens)
    limit = 0.7 * every.output_error
    original = copy.deepcopy(model)
    report = pr.quantize_(model, calibration=tokens, max_error=limit)
    assert error(original, model, tokens) <= limit * 1.0001
    kept = [layer for layer in report.layers if layer.kind == "linear" and layer.precision == "float32"]
    assert 0 < len(kept) < 3
    assert all("max_error" in layer.reason for layer in kept)
    assert report.bytes_after > every.bytes_after


def test_an_error_that_nothing_keeps_leaves_all_in_float(model, tokens):
    original = copy.deepcopy(model)
    report = pr.quantize_(model, calibration=tokens, max_error=1e-9)
    assert report.quantized == ()
    assert report.output_error <= 1e-9
    assert error(original, model, tokens) == 0
    (table,) = [layer for layer in report.layers if layer.kind == "embedding"]
    assert table.reason == "8-bit embeddings alone cost more than max_error"


def test_the_report_counts_what_the_layers_hold(model, tokens):
    report = pr.quantize_(model, calibration=tokens)
    held = {"left": model.left, "right": model.right, "head": model.head, "table": model.table}
    assert {layer.name: layer.bytes_after for layer in report.layers} == {
        name: layer.stored_bytes for name, layer in held.items()
    }
    assert report.bytes_before == 4 * (400 * 48 + 2 * (48 * 64 + 64) + 64 * 10 + 10)
    text = str(report)
    assert "head" in text
    assert f"{report.bytes_before:,} → {report.bytes_after:,} bytes" in text


def test_skipped_layers_and_embeddings_stay(model, tokens):
    report = pr.quantize_(model, calibration=tokens, skip=["head"], embedding_bits=None)
    assert type(model.head) is nn.Linear
    assert type(model.table) is nn.Embedding
    assert {layer.name for layer in report.layers} == {"left", "right"}


def test_layers_that_are_not_called_stay_and_say_so(tokens):
    class Unused(Encoder):
        def __init__(self):
            super().__init__()
            self.idle = nn.Linear(8, 8)

    model = Unused().eval()
    report = pr.quantize_(model, calibration=tokens)
    assert type(model.idle) is nn.Linear
    (idle,) = [layer for layer in report.layers if layer.name == "idle"]
    assert "never called in calibration" in idle.reason


def test_tied_layers_share_their_weight():
    torch.manual_seed(0)
    first, second = nn.Linear(32, 32), nn.Linear(32, 32)
    second.weight = first.weight
    model = nn.Sequential(first, nn.Tanh(), second)
    x = torch.randn(64, 32)
    original = copy.deepcopy(model)
    pr.quantize_(model, calibration=x)
    assert torch.equal(model[0].weight_int8, model[2].weight_int8)
    assert error(original, model, x) < 0.03


def test_the_transformer_of_torch_leaves_its_fast_path():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    x = torch.randn(16, 7, 32)
    original = copy.deepcopy(model)
    report = pr.quantize_(model, calibration=x)
    assert isinstance(model.layers[0].linear1, Int8Linear)
    assert 0 < error(original, model, x) < 0.02
    assert {layer.precision for layer in report.layers} == {"int8"}
    for projection in ("q_proj", "k_proj", "v_proj", "out_proj"):
        assert isinstance(model.layers[1].self_attn.get_submodule(projection), Int8Linear)


def test_attention_that_is_left_out_stays_packed():
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True).eval()
    attention = model.self_attn
    pr.quantize_(model, calibration=torch.randn(16, 7, 32), skip=["self_attn.*"])
    assert model.self_attn is attention
    assert isinstance(model.linear1, Int8Linear)


class Experts(nn.Module):
    """As transformers packs them; called with rows, experts and shares."""

    def __init__(self):
        super().__init__()
        self.up_proj = nn.Parameter(torch.randn(3, 64, 32) / 6)
        self.down_proj = nn.Parameter(torch.randn(3, 32, 64) / 8)
        self.act_fn = nn.GELU()

    def forward(self, hidden_states, top_k_index, top_k_weights):
        every = self.act_fn(hidden_states @ self.up_proj.mT) @ self.down_proj.mT
        weights = torch.zeros(len(hidden_states), 3).scatter_add(1, top_k_index, top_k_weights)
        return torch.einsum("end,ne->nd", every, weights)


class Mixture(nn.Module):
    def __init__(self):
        super().__init__()
        self.experts = Experts()

    def forward(self, x):
        shares, chosen = x[:, :3].softmax(-1).topk(1)
        return x + self.experts(x, chosen, shares)


@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_experts_are_quantized_those_without_rows_by_the_rows_of_others(weights, tmp_path, run):
    torch.manual_seed(0)
    model, x = Mixture().eval(), torch.randn(120, 32)
    x[:, 2] = -9.0  # nothing goes to the last expert
    original = copy.deepcopy(model)
    report = pr.quantize_(model, calibration=x, weights=weights)
    assert {layer.precision for layer in report.layers} == {weights}
    assert len(report.layers) == 6
    assert report.output_error == pytest.approx(error(original, model, x), rel=1e-3)
    # rows that go to all of them
    given = torch.randn(50, 32)
    assert error(original, model, given) < (0.05 if weights == "int8" else 0.15)
    exported = export_onnx(model, x[:8], tmp_path, name="experts", num_threads=1, batch_sizes=(1,))
    (found,) = run(exported.path, x=given)
    with torch.no_grad():
        expected = model(given)
    # a sum at the edge of a rounding may fall to either side
    assert (torch.from_numpy(found) - expected).norm() < 2e-3 * expected.norm()


def test_after_an_error_the_model_is_as_it_was(model, tokens):
    before = copy.deepcopy(model.state_dict())

    def stop(what, done, total):
        if what == "comparing":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pr.quantize_(model, calibration=tokens, on_step=stop)
    assert type(model.head) is nn.Linear
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_error": 0.0}, r"max_error \(0.0\) must be positive"),
        ({"embedding_bits": 5}, r"embedding_bits \(5\) must be 4, 8 or None"),
        ({"alphas": ()}, r"alphas \(\[\]\) must lie between 0 and 1, and be at least one"),
        ({"alphas": (0.5, 1.5)}, r"alphas \(\[0.5, 1.5\]\) must lie between 0 and 1"),
        ({"probes": -1}, r"probes \(-1\) must be an integer of at least 0"),
    ],
)
def test_what_is_wrong_is_named(model, tokens, changes, message):
    with pytest.raises(ValueError, match=message):
        pr.quantize_(model, calibration=tokens, **changes)


def test_a_model_that_is_the_layer_itself_is_refused(tokens):
    with pytest.raises(ValueError, match=r"model is itself an nn\.Linear"):
        pr.quantize_(nn.Linear(4, 4), calibration=torch.randn(4, 4))


def test_a_model_without_such_layers_is_refused():
    with pytest.raises(pr.ConversionError, match="no linear layer, convolution or embedding"):
        pr.quantize_(nn.Sequential(nn.ReLU()), calibration=torch.randn(4, 4))


def test_conv1d_of_transformers_is_quantized():
    from transformers.pytorch_utils import Conv1D

    torch.manual_seed(0)
    model = nn.Sequential(Conv1D(96, 64), nn.GELU(), Conv1D(10, 96)).eval()
    x, original = torch.randn(100, 64), copy.deepcopy(model)
    pr.quantize_(model, calibration=x)
    assert [type(layer) for layer in model] == [Int8Linear, nn.GELU, Int8Linear]
    assert error(original, model, x) < 0.03


def test_a_model_in_bfloat16_keeps_its_type():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 10)).to(torch.bfloat16).eval()
    x, original = torch.randn(100, 64).to(torch.bfloat16), copy.deepcopy(model)
    pr.quantize_(model, calibration=x)
    assert model(x).dtype == torch.bfloat16
    assert error(original, model, x) < 0.03


def test_sketched_layers_stay_sketched():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 64)).eval()
    x = torch.randn(200, 256)
    pr.sketch_(model, ratio=0.5, calibration=x, skip=["2"])
    original = copy.deepcopy(model)
    pr.quantize_(model, calibration=x)
    assert [type(layer) for layer in model] == [pr.nn.SKLinear, nn.ReLU, Int8Linear]
    assert error(original, model, x) < 0.02


def test_without_derivatives_errors_are_those_of_the_layers():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)).eval()
    x, original = torch.randn(100, 64), copy.deepcopy(model)
    with torch.inference_mode():
        report = pr.quantize_(model, calibration=x, probes=0)
    assert all(0 < layer.predicted_error < 0.02 for layer in report.layers)
    assert error(original, model, x) < 0.03


def test_a_quantized_model_has_nothing_left_to_quantize(model, tokens):
    pr.quantize_(model, calibration=tokens)
    with pytest.raises(pr.ConversionError, match="no linear layer, convolution or embedding to quantize"):
        pr.quantize_(model, calibration=tokens)


@pytest.mark.parametrize("options", [{"weights": "int8"}, {"weights": "int4"}])
def test_many_outputs_are_weighed_one_by_one(monkeypatch, model, tokens, options):
    whole = pr.quantize_(copy.deepcopy(model), calibration=tokens, **options)
    monkeypatch.setattr("panther.convert.moments.MOST_OUTPUTS", 9)
    found = pr.quantize_(copy.deepcopy(model), calibration=tokens, **options)
    assert found.output_error == pytest.approx(whole.output_error, rel=0.15)
