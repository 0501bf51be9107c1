from __future__ import annotations

import json

import pytest
import torch
from torch import nn

import panther as pr
from panther.nn import LowRankEmbedding, LowRankEmbeddingBag, SKLinear


@pytest.fixture
def model():
    return nn.Sequential(SKLinear(512, 256, 2, 16), nn.ReLU(), SKLinear(256, 128, 1, 8, bias=False), nn.Linear(128, 10))


def test_a_layer(model):
    layer = model[0]
    (entry,) = pr.analyze(layer).layers
    assert (entry.name, entry.in_features, entry.out_features, entry.num_terms, entry.low_rank) == ("", 512, 256, 2, 16)
    assert entry.S1s_parameters == entry.U2s_parameters == layer.S1s.numel()
    assert entry.S2s_parameters == entry.U1s_parameters == layer.S2s.numel()
    assert entry.bias_parameters == 256
    for name in ("S1s", "S2s"):
        values = getattr(layer, name).detach().double().numpy()
        assert getattr(entry, f"{name}_mean") == pytest.approx(values.mean(), abs=1e-6)
        assert getattr(entry, f"{name}_std") == pytest.approx(values.std(), rel=1e-3)
    assert entry.costs.bytes_in_memory == sum(tensor.nbytes for tensor in layer.state_dict().values())
    assert entry.costs.latency_us > 0
    assert entry.costs.dense_latency_us > 0


def test_bytes_on_disk_are_those_of_a_compact_checkpoint(model, tmp_path):
    analysis = pr.analyze(model[0], batch_size=None)
    size = pr.save(model[0], tmp_path / "layer.safetensors")
    assert 0 < size - analysis.total.bytes_on_disk < 4096
    gaussian = SKLinear(512, 256, 2, 16, sketch="gaussian")
    assert pr.analyze(gaussian, batch_size=None).total.bytes_on_disk == gaussian.parameter_count().stored * 4


def test_a_model_and_its_total(model):
    analysis = pr.analyze(model, batch_size=2)
    assert [entry.name for entry in analysis.layers] == ["0", "2"]
    total = analysis.total
    assert total.parameters == model[0].parameter_count() + model[2].parameter_count()
    assert total.multiply_adds_per_row == 2 * 2 * 16 * 768 + 2 * 8 * 384
    assert total.dense_multiply_adds_per_row == 512 * 256 + 256 * 128
    assert total.latency_us == pytest.approx(sum(entry.costs.latency_us for entry in analysis.layers))
    assert analysis.other_parameters == 1290
    learnable = sum(parameter.numel() for parameter in model.parameters())
    assert total.parameters.learnable + analysis.other_parameters == learnable


def test_as_text_html_and_dict(model):
    analysis = pr.analyze(model)
    for text in (str(analysis), analysis._repr_html_()):
        for said in ("24,832 (-81.1%)", "24,576", "131,328", "512 → 256", "µs, batch 1", "together"):
            assert said in text
    assert json.loads(json.dumps(analysis.as_dict()))["layers"][0]["costs"]["parameters"]["learnable"] == 24_832


def test_nothing_is_measured_where_nothing_is_asked(model):
    analysis = pr.analyze(model, batch_size=None)
    assert analysis.total.latency_us is None
    assert "batch" not in str(analysis)


def test_models_without_and_on_meta():
    assert str(pr.analyze(nn.Linear(2, 2))) == "no sketched layers"
    entry = pr.analyze(SKLinear(64, 64, 1, 8, device="meta")).layers[0]
    assert entry.S1s_mean is None
    assert entry.costs.latency_us is None


def test_the_model_is_left_as_it_was(model):
    before = {key: value.clone() for key, value in model.state_dict().items()}
    state = torch.random.get_rng_state()
    pr.analyze(model)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert model.training


def test_approximation_quality():
    reference = nn.Linear(8, 6, bias=False)
    half, opposite = nn.Linear(8, 6, bias=False), nn.Linear(8, 6, bias=False)
    half.weight.data = reference.weight.data / 2
    opposite.weight.data = -reference.weight.data
    batches = [torch.randn(5, 8), torch.randn(3, 8)]
    same = pr.approximation_quality(reference, reference, batches)
    assert (same.relative_error, same.rows) == (0, 8)
    assert same.mean_cosine == pytest.approx(1)
    assert float(pr.approximation_quality(reference, half, batches[0])) == pytest.approx(0.5)
    assert pr.approximation_quality(reference, opposite, batches).mean_cosine == pytest.approx(-1)
    y, wrong = reference(batches[0]).detach(), batches[0] @ torch.ones(8, 6)
    quality = pr.approximation_quality(reference, lambda x: x @ torch.ones(8, 6), [batches[0]])
    assert quality.max_relative_error == pytest.approx((torch.norm(y - wrong) / torch.norm(y)).item(), rel=1e-5)


def test_wrong_arguments():
    with pytest.raises(ValueError, match=r"batch_size \(0\)"):
        pr.analyze(nn.Linear(2, 2), batch_size=0)
    with pytest.raises(ValueError, match=r"output has shape \(3, 2\), the approximation's \(3, 4\)"):
        pr.approximation_quality(nn.Linear(2, 2), nn.Linear(2, 4), torch.zeros(3, 2))
    with pytest.raises(ValueError, match="zeros alone"):
        pr.approximation_quality(nn.Linear(2, 2, bias=False), nn.Linear(2, 2), torch.zeros(3, 2))
    with pytest.raises(ValueError, match="holds no batch"):
        pr.approximation_quality(nn.Linear(2, 2), nn.Linear(2, 2), [])


def test_what_tied_layers_share_counts_once_in_all(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(96, 96), nn.ReLU(), nn.Linear(96, 96), nn.Linear(96, 96, bias=False)).double()
    model[2].weight = model[3].weight = model[0].weight
    twin = sum(parameter.numel() for parameter in model.parameters())
    pr.sketch_(model, ratio=0.7)
    assert model[0].S1s is model[2].S1s is model[3].S1s
    analysis = pr.analyze(model, batch_size=None)
    total, buffers = analysis.total, {id(buffer): buffer.numel() for buffer in model.buffers()}
    assert total.parameters.dense == twin
    assert total.parameters.learnable == sum(parameter.numel() for parameter in model.parameters())
    assert total.parameters.fixed == sum(buffers.values())
    assert analysis.other_parameters == 0
    assert total.bytes_in_memory == total.bytes_on_disk == 8 * total.parameters.stored
    assert total.multiply_adds_per_row == 3 * analysis.layers[0].costs.multiply_adds_per_row


def test_a_shared_bias_counts_once_in_all():
    model = nn.Sequential(SKLinear(64, 64, 1, 8), SKLinear(64, 64, 1, 8))
    model[1].bias = model[0].bias
    analysis = pr.analyze(model, batch_size=None)
    assert analysis.total.parameters.learnable == sum(parameter.numel() for parameter in model.parameters())
    assert analysis.total.parameters.dense == 2 * 64 * 64 + 64
    assert analysis.other_parameters == 0


def test_embeddings_of_low_rank_are_counted_once():
    one, same = LowRankEmbedding(100, 16, 4), LowRankEmbedding(100, 16, 4)
    same.tie_to(one)
    model = nn.ModuleDict({"one": one, "same": same, "bag": LowRankEmbeddingBag(50, 16, 2), "out": nn.Linear(16, 3)})
    analysis = pr.analyze(model)
    layers = {layer.name: layer for layer in analysis.layers}
    bag = layers["bag"]
    assert (bag.in_features, bag.out_features, bag.low_rank, bag.sketch) == (50, 16, 2, "none")
    assert (bag.S1s_parameters, bag.S2s_parameters, bag.U1s_parameters, bag.bias_parameters) == (100, 32, 0, 0)
    assert (bag.costs.multiply_adds_per_row, bag.costs.dense_multiply_adds_per_row) == (32, 0)
    assert bag.costs.latency_us is None
    count = analysis.total.parameters
    assert (count.dense, count.learnable, count.fixed) == (1600 + 800, 4 * 116 + 132, 0)
    assert analysis.other_parameters == 51
    assert "one" in str(analysis)
