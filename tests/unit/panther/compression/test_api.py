"""`compress` on small models: budgets are kept, the original is left alone, and what can't be done is said."""

import copy
import functools

import pytest
import torch
from torch import nn

import panther as pr
from panther.compression import KINDS
from panther.nn import LowRankEmbedding, SKLinear
from panther.nn.low_rank import Int8LowRank
from panther.nn.quantized import BlockEmbedding, BlockLinear, CorrectedLinear, FactoredLinear, Int8Embedding, Int8Linear

# two kinds and few probes, where neither matters
shrink = functools.partial(pr.compress, kinds=("int8", "low_rank_int8"), probes=2)


def stored(model):
    """Bytes of all tensors of a model, each once; independent of the report."""
    tensors = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def state(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(model, before):
    after = model.state_dict()
    return after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)


@pytest.mark.parametrize("share", [0.22, 0.3, 0.6])
def test_a_budget_of_bytes_is_kept_by_the_model_that_comes_out(model, tokens, error, share):
    limit = int(share * stored(model))
    compressed = shrink(model, calibration=tokens, max_bytes=limit)
    assert stored(compressed.model) <= limit
    assert compressed.report.bytes_after == stored(compressed.model)
    assert compressed.report.bytes_before == stored(model)
    assert compressed.report.output_error == pytest.approx(error(model, compressed.model, tokens), rel=1e-4)


def test_more_bytes_keep_more(model, tokens):
    errors = [
        shrink(model, calibration=tokens, max_bytes=int(share * stored(model))).report.output_error
        for share in (0.18, 0.22, 0.6)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.3 * errors[0]


def test_every_layer_has_bytes_that_its_modules_hold(model, tokens):
    compressed = shrink(model, calibration=tokens, max_bytes=int(0.2 * stored(model)))
    for layer in compressed.report.layers:
        assert layer.bytes_after == stored(compressed.model.get_submodule(layer.name)), layer.name
    by_kind = compressed.report.bytes_by_kind
    assert sum(by_kind.values()) == stored(compressed.model)


def test_an_error_is_kept_by_fewer_bytes_than_float_takes(model, tokens, error):
    compressed = shrink(model, calibration=tokens, max_error=0.05)
    assert error(model, compressed.model, tokens) <= 0.05
    assert stored(compressed.model) < 0.3 * stored(model)
    looser = shrink(model, calibration=tokens, max_error=0.15)
    assert stored(looser.model) < stored(compressed.model)


def test_each_kind_does_what_it_says(model, tokens):
    types = {
        "int8": Int8Linear,
        "low_rank": SKLinear,
        "low_rank_int8": Int8LowRank,
        "low_rank_int4": FactoredLinear,
        "int4": BlockLinear,
        "int4_corrected": CorrectedLinear,
        "int8_blocks": BlockLinear,
    }
    assert types.keys() == set(KINDS)
    for kind, expected in types.items():
        layers = shrink(model, calibration=tokens, max_error=0.5, kinds=[kind])
        found = {type(layers.model.get_submodule(layer.name)) for layer in layers.report.layers if layer.kind == kind}
        assert expected in found
        assert found <= {expected, Int8Embedding, BlockEmbedding, LowRankEmbedding}


def test_8_bits_alone_do_no_worse_than_quantize_(model, tokens, error):
    quantized = copy.deepcopy(model)
    pr.quantize_(quantized, calibration=tokens, probes=2)
    compressed = shrink(model, calibration=tokens, max_bytes=stored(quantized), kinds=["int8"])
    assert stored(compressed.model) <= stored(quantized)
    assert error(model, compressed.model, tokens) <= 1.01 * error(model, quantized, tokens)


def test_all_kinds_do_no_worse_than_one(model, tokens):
    limit = int(0.2 * stored(model))
    joint = shrink(model, calibration=tokens, max_bytes=limit, kinds=KINDS)
    for kind in KINDS:
        try:
            single = shrink(model, calibration=tokens, max_bytes=limit, kinds=[kind])
        except ValueError:
            continue  # this kind alone can't get there
        assert joint.report.output_error <= single.report.output_error * 1.0001


def test_a_metric_never_falls_below_its_threshold(model, tokens):
    with torch.no_grad():
        labels = model(tokens).argmax(-1)

    def accuracy(network):
        with torch.no_grad():
            return (network(tokens).argmax(-1) == labels).float().mean()

    compressed = shrink(model, calibration=tokens, metric=accuracy, at_least=0.9)
    assert float(accuracy(compressed.model)) >= 0.9
    assert compressed.report.metric == (1.0, pytest.approx(float(accuracy(compressed.model))))
    assert stored(compressed.model) < 0.3 * stored(model)
    stricter = shrink(model, calibration=tokens, metric=accuracy, at_least=0.995)
    assert float(accuracy(stricter.model)) >= 0.995
    assert stored(stricter.model) >= stored(compressed.model)


def test_a_metric_out_of_reach_says_what_the_original_has(model, tokens):
    with pytest.raises(ValueError, match=r"at_least \(0.9\) can't be met: the original's metric is 0.25; lower"):
        shrink(model, calibration=tokens, metric=lambda _: 0.25, at_least=0.9)
    with pytest.raises(ValueError, match="the original's metric is nan"):
        shrink(model, calibration=tokens, metric=lambda _: float("nan"), at_least=0.9)
    with pytest.raises(ValueError, match=r"metric returned 'good' \(str\); it must return a number"):
        shrink(model, calibration=tokens, metric=lambda _: "good", at_least=0.9)


def test_the_original_is_left_alone(model, tokens):
    model.train()
    before, modules = state(model), list(model.modules())
    shrink(model, calibration=tokens, max_error=0.2)
    assert same(model, before)
    assert [id(module) for module in model.modules()] == [id(module) for module in modules]
    assert all(module.training for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_after_an_error_the_original_is_left_alone(model, tokens):
    before = state(model)

    def stop(what, done, total):
        if what == "comparing":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        shrink(model, calibration=tokens, max_error=0.2, on_step=stop)
    with pytest.raises(ZeroDivisionError):
        shrink(model, calibration=tokens, metric=lambda _: 1 / 0, at_least=0.5)
    assert same(model, before)
    assert type(model.head) is nn.Linear
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_bytes_out_of_reach_say_the_least(model, tokens):
    with pytest.raises(
        ValueError, match=r"max_bytes \(1,000\) can't be met: .* take ([\d,]+) bytes; give at least"
    ) as caught:
        shrink(model, calibration=tokens, max_bytes=1000)
    least = int(str(caught.value).split(" bytes; give at least")[0].split()[-1].replace(",", ""))
    assert stored(shrink(model, calibration=tokens, max_bytes=least).model) == least


def test_the_curve_has_what_was_chosen(model, tokens):
    compressed = shrink(model, calibration=tokens, max_error=0.1)
    chosen = compressed.curve.points[compressed.curve.chosen]
    assert chosen.bytes == compressed.report.bytes_after
    assert chosen.output_error == compressed.report.output_error
    assert [point.bytes for point in compressed.curve.points] == sorted(
        point.bytes for point in compressed.curve.points
    )


@pytest.mark.parametrize("batches", ["generator", "loader", "tuples", "dicts"])
def test_calibration_comes_in_any_form(model, tokens, batches):
    parts = tokens.split(48)
    labels = torch.zeros(96)
    dataset = torch.utils.data.TensorDataset(tokens, labels)
    given = {
        "generator": (part for part in parts),
        "loader": torch.utils.data.DataLoader(dataset, batch_size=48),
        "tuples": [(part, torch.zeros(48)) for part in parts],
        "dicts": [{"tokens": part, "labels": torch.zeros(48)} for part in parts],
    }
    compressed = shrink(model, calibration=given[batches], max_error=0.1)
    expected = shrink(model, calibration=parts, max_error=0.1)
    assert compressed.report.output_error == pytest.approx(expected.report.output_error, rel=1e-4)


def test_forward_calls_the_model_in_another_way(model, tokens):
    compressed = shrink(model, calibration=[[tokens]], max_error=0.1, forward=lambda net, batch: net(batch[0]))
    assert compressed.report.output_error <= 0.1


def test_shared_modules_and_tied_weights_stay_one():
    torch.manual_seed(0)
    first, second = nn.Linear(64, 64), nn.Linear(64, 64)
    second.weight = first.weight
    model = nn.Sequential(first, nn.Tanh(), second, nn.Tanh(), first).eval()
    x = torch.randn(200, 64)
    for kind in KINDS:
        compressed = shrink(model, calibration=x, max_error=0.9, kinds=[kind])
        (layer,) = compressed.report.layers
        assert layer.kind == kind
        assert compressed.model[0] is compressed.model[4]
        assert torch.equal(compressed.model[0].weight, compressed.model[2].weight)
        assert stored(compressed.model) == compressed.report.bytes_after
        assert compressed.report.output_error <= 0.9


def test_an_embedding_that_is_also_the_head_becomes_low_rank_with_it_or_stays():
    torch.manual_seed(0)

    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.layer, self.head = nn.Embedding(400, 64), nn.Linear(64, 64), nn.Linear(64, 400, bias=False)
            self.head.weight = self.table.weight
            with torch.no_grad():
                U, S, Vh = torch.linalg.svd(self.table.weight, full_matrices=False)
                self.table.weight.copy_(U * (S * torch.arange(1, 65) ** -1.0) @ Vh)

        def forward(self, tokens):
            return self.head(torch.tanh(self.layer(self.table(tokens))))

    model, tokens = Tied().eval(), torch.randint(0, 400, (64, 4))
    size = stored(model)
    compressed = shrink(model, calibration=tokens, max_bytes=int(0.5 * size), kinds=["int8", "low_rank"])
    assert compressed.model.head.A is compressed.model.table.A
    assert stored(compressed.model) == compressed.report.bytes_after <= 0.5 * size
    assert compressed.report.output_error < 0.2
    (layer,) = (layer for layer in compressed.report.layers if layer.layer == "embedding")
    assert (layer.name, layer.kind, layer.multiply_adds_before) == ("table", "low_rank", 400 * 64)
    assert layer.multiply_adds_after == layer.rank * (64 + 464)

    dense = shrink(model, calibration=tokens, max_error=0.2, kinds=["int8"])
    reasons = {layer.name: layer.reason for layer in dense.report.layers if layer.kind == "float"}
    assert "also that of another module; low_rank alone keeps them on one weight" in reasons["table"]
    assert dense.model.head.weight is dense.model.table.weight
    assert type(dense.model.layer) is not nn.Linear
    apart = shrink(model, calibration=tokens, max_error=0.2, skip=["head"])
    reasons = {layer.name: layer.reason for layer in apart.report.layers if layer.kind == "float"}
    assert "its weight is also that of" in reasons["table"]


def test_what_is_converted_already_stays_and_says_so(model, tokens):
    pr.quantize_(model, calibration=tokens, skip=["wide", "left", "right"], embedding_bits=None)
    model.left = SKLinear.from_linear(model.left, 1, 16)
    compressed = shrink(model, calibration=tokens, max_error=0.1)
    assert type(compressed.model.head) is Int8Linear
    assert type(compressed.model.left) is SKLinear
    reasons = {name: group.reason for group in compressed.report.unreached for name in group.names}
    assert reasons["head"] == "quantized (int8), left unchanged"
    assert reasons["left"] == "sketched already"


def test_convolutions_of_other_kinds_stay_and_say_so():
    torch.manual_seed(0)
    model = nn.Sequential(nn.ConvTranspose2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 100, 64)).eval()
    compressed = shrink(model, calibration=torch.randn(64, 1, 8, 8), max_error=0.1)
    assert type(compressed.model[0]) is nn.ConvTranspose2d
    reasons = {group.kind: group.reason for group in compressed.report.unreached}
    assert "a transposed or three-dimensional convolution" in reasons["ConvTranspose2d"]
    assert "a transposed or three-dimensional convolution" in str(compressed.report)


def test_nothing_to_compress_says_what_is_there():
    with pytest.raises(pr.ConversionError, match=r"no linear layer, convolution or embedding.*; 0: a transposed or"):
        shrink(nn.Sequential(nn.ConvTranspose1d(1, 2, 3)), calibration=torch.randn(4, 1, 8), max_error=0.1)
    table = nn.Sequential(nn.Embedding(10, 4))
    with pytest.raises(pr.ConversionError, match="0: small: 160 bytes"):
        shrink(table, calibration=torch.zeros(4, 1, dtype=torch.int64), max_error=0.1)


class Poisoned(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(32, 64)

    def forward(self, x):
        return torch.where(x[:, :1] > 0, self.layer(x), torch.nan)


def test_rows_that_are_nan_are_left_out_and_noted():
    torch.manual_seed(0)
    compressed = shrink(Poisoned().eval(), calibration=torch.randn(200, 32), max_error=0.1, probes=0)
    assert 0 < compressed.report.output_error <= 0.1
    assert any("infinite or NaN" in note for note in compressed.report.notes)


def test_outputs_of_nan_alone_are_refused():
    with pytest.raises(pr.ConversionError, match="no finite floating-point numbers"):
        shrink(Poisoned().eval(), calibration=-torch.ones(8, 32), max_error=0.1, probes=0)


def test_half_precision_keeps_its_type(error):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 96), nn.GELU(), nn.Linear(96, 64)).to(torch.bfloat16).eval()
    x = torch.randn(100, 64).to(torch.bfloat16)
    compressed = shrink(model, calibration=x, max_bytes=int(0.6 * stored(model)))
    assert compressed.model(x).dtype == torch.bfloat16
    assert stored(compressed.model) <= 0.6 * stored(model)
    assert error(model, compressed.model, x) < 0.1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "give one of max_bytes, max_error, speedup and metric; given: none"),
        ({"max_bytes": 10, "max_error": 0.1}, "given: max_bytes, max_error"),
        ({"max_error": 0.1, "kinds": ["int3"]}, r"kinds \(\['int3'\]\) must be one or more of"),
        ({"max_error": 0.1, "probes": -1}, r"probes \(-1\) must be an integer of at least 0"),
        ({"max_error": 0.1, "skip": ["nothing"]}, "skip pattern 'nothing' matches no linear layer"),
    ],
)
def test_what_is_wrong_is_named(model, tokens, changes, message):
    with pytest.raises(ValueError, match=message):
        shrink(model, calibration=tokens, **changes)


def test_a_model_that_is_the_layer_itself_is_refused():
    with pytest.raises(ValueError, match=r"model is itself an nn\.Linear; wrap it in nn\.Sequential"):
        shrink(nn.Linear(4, 4), calibration=torch.randn(4, 4), max_error=0.1)


def test_a_model_that_can_not_be_copied_is_refused(tokens):
    class Uncopied(nn.Module):
        def __deepcopy__(self, memo):
            raise RuntimeError("no copies")

    with pytest.raises(pr.ConversionError, match="works on a copy, and the model can't be copied: no copies"):
        shrink(Uncopied(), calibration=tokens, max_error=0.1)


def test_attention_takes_part_and_stays_packed_where_it_is_left(error):
    torch.manual_seed(0)
    encoder = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True).eval()
    x = torch.randn(16, 7, 32)
    compressed = shrink(encoder, calibration=x, max_bytes=int(0.35 * stored(encoder)))
    assert stored(compressed.model) <= 0.35 * stored(encoder)
    assert {f"self_attn.{name}_proj" for name in ("q", "k", "v", "out")} <= {
        layer.name for layer in compressed.report.layers if layer.kind != "float"
    }
    assert compressed.report.output_error == pytest.approx(error(encoder, compressed.model, x), rel=1e-3)
    whole = shrink(encoder, calibration=x, max_bytes=2 * stored(encoder))
    assert type(whole.model.self_attn) is nn.MultiheadAttention
    assert stored(whole.model) == stored(encoder)


class Classifier(nn.Module):
    """A layer, and a head of 300 classes whose weights have a falling spectrum."""

    def __init__(self):
        super().__init__()
        self.first, self.head = nn.Linear(32, 64), nn.Linear(64, 300)
        with torch.no_grad():
            U, S, Vh = torch.linalg.svd(self.head.weight, full_matrices=False)
            self.head.weight.copy_(U * (S * torch.arange(1, len(S) + 1) ** -0.7) @ Vh * 3)

    def forward(self, x):
        return torch.softmax(self.head(torch.relu(self.first(x))), dim=1)


@pytest.mark.parametrize("derivatives", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_many_outputs_are_weighed_one_by_one(monkeypatch, kind, derivatives):
    """As those of a vocabulary, whose weights together are a matrix too large to keep."""
    torch.manual_seed(0)
    model, x = Classifier().eval(), torch.randn(200, 32)
    options = {"kinds": (kind,), "probes": 4 if derivatives else 0, "max_error": 0.2}
    whole = pr.compress(model, calibration=x, **options).report
    monkeypatch.setattr("panther.convert.moments.MOST_OUTPUTS", 256)
    found = pr.compress(model, calibration=x, **options).report
    assert found.output_error <= 0.2
    assert found.bytes_after < found.bytes_before
    assert found.bytes_after <= 1.1 * whole.bytes_after


def test_the_memory_of_a_vocabulary_grows_with_its_size_and_not_its_square():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 50_000)).eval()
    found = pr.compress(model, calibration=torch.randn(16, 8), max_error=0.5, kinds=("int8",), probes=1, memory="200MB")
    assert isinstance(found.model[1], Int8Linear)
