from __future__ import annotations

import copy
import os

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import panther as pr
from panther.checkpoint import CheckpointError, read
from panther.nn import ConditionalSKLinear, ProgressiveSKLinear, SKLinear

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


def network(seed: int = 0, dtype: torch.dtype | None = None, **options) -> nn.Sequential:
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    return nn.Sequential(
        SKLinear(100, 90, 2, 3, generator=generator, **options),
        nn.BatchNorm1d(90),
        nn.Linear(90, 80),
        SKLinear(80, 70, 1, 5, generator=generator, bias=False, **options),
    ).to(dtype)


def assert_same_state(ours: nn.Module, theirs: nn.Module) -> None:
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for key, value in ours.state_dict().items():
        other = theirs.state_dict()[key]
        assert value.dtype == other.dtype, key
        assert torch.equal(value, other), key


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sketch", ["sign", "gaussian"])
def test_reloads_bit_for_bit(tmp_path, dtype, sketch):
    model, other = network(0, dtype, sketch=sketch), network(1, dtype, sketch=sketch)
    size = pr.save(model, tmp_path / "model.safetensors")
    assert size == (tmp_path / "model.safetensors").stat().st_size
    result = pr.load(other, tmp_path / "model.safetensors")
    assert result == ([], [])
    assert_same_state(other, model)
    stored = load_file(tmp_path / "model.safetensors")
    assert ("0.U1s.signs" in stored) == (sketch == "sign")
    assert ("0.U1s" in stored) == (sketch != "sign")


def test_the_large_example_is_small(tmp_path):
    layer = SKLinear(4096, 4096, 4, 128)
    size = pr.save(layer, tmp_path / "layer.safetensors")
    assert size <= 17_500_000
    # S and bias as floats, U at a bit each, and less than 4 KB to say so
    assert 0 <= size - (4 * 4_198_400 + 4_194_304 // 8) < 4096
    twin = SKLinear(4096, 4096, 4, 128)
    pr.load(twin, tmp_path / "layer.safetensors")
    assert_same_state(twin, layer)


def test_u_with_a_zero_is_stored_as_floats(tmp_path):
    layer, twin = SKLinear(64, 48, 1, 8), SKLinear(64, 48, 1, 8)
    # the public package can draw zeros
    layer.U1s[0, 0, 0] = 0
    pr.save(layer, tmp_path / "layer.safetensors")
    pr.load(twin, tmp_path / "layer.safetensors")
    assert_same_state(twin, layer)


def test_only_fixed_matrices_are_packed(tmp_path):
    model = nn.Sequential(nn.LayerNorm(64), SKLinear(64, 48, 1, 8))
    pr.save(model, tmp_path / "model.safetensors")
    assert {"0.weight", "1.U1s.signs"} <= load_file(tmp_path / "model.safetensors").keys()


def test_tied_layers_are_stored_once_and_stay_tied(tmp_path):
    def tied():
        layer = SKLinear(64, 64, 1, 8)
        return nn.ModuleDict({"a": layer, "b": nn.Sequential(layer)})

    model, other = tied(), tied()
    pr.save(model, tmp_path / "model.safetensors")
    assert sorted(load_file(tmp_path / "model.safetensors")) == [
        "a.S1s",
        "a.S2s",
        "a.U1s.signs",
        "a.U2s.signs",
        "a.bias",
    ]
    pr.load(other, tmp_path / "model.safetensors")
    assert_same_state(other, model)
    assert other["a"] is other["b"][0]


def test_a_module_on_meta_takes_the_tensors(tmp_path):
    model = network()
    pr.save(model, tmp_path / "model.safetensors")
    with torch.device("meta"):
        empty = nn.Sequential(
            SKLinear(100, 90, 2, 3), nn.BatchNorm1d(90), nn.Linear(90, 80), SKLinear(80, 70, 1, 5, bias=False)
        )
    pr.load(empty, tmp_path / "model.safetensors")
    assert_same_state(empty, model)


def test_growing_and_conditional_layers(tmp_path):
    def make():
        return nn.Sequential(
            ProgressiveSKLinear(128, 96, 1, 4, 2, 6), ConditionalSKLinear(96, 64, num_terms=1, low_rank=4)
        )

    model, fresh = make(), make()
    model[0].increase_complexity()
    pr.save(model, tmp_path / "model.safetensors")
    pr.load(fresh, tmp_path / "model.safetensors")
    assert_same_state(fresh, model)
    small = nn.Sequential(
        ProgressiveSKLinear(128, 96, 1, 1, 2, 2), ConditionalSKLinear(96, 64, num_terms=1, low_rank=4)
    )
    with pytest.raises(CheckpointError, match=r"'0.current_layer.S1s' is \(2, 128, 4\) in the file and \(1, 128, 2\)"):
        pr.load(small, tmp_path / "model.safetensors")


def test_a_plain_safetensors_file_loads_too(tmp_path):
    model, other = network(), network(1)
    save_file(model.state_dict(), tmp_path / "plain.safetensors")
    pr.load(other, tmp_path / "plain.safetensors")
    assert_same_state(other, model)


def test_every_flipped_or_missing_byte_is_noticed_and_the_model_is_as_it_was(tmp_path):
    path = tmp_path / "model.safetensors"
    pr.save(SKLinear(16, 16, 1, 2), path)
    whole = path.read_bytes()
    layer = SKLinear(16, 16, 1, 2)
    before = copy.deepcopy(layer)
    for position in range(0, len(whole), 7):
        damaged = bytearray(whole)
        damaged[position] ^= 0x10
        for content in (bytes(damaged), whole[:position]):
            path.write_bytes(content)
            with pytest.raises(CheckpointError, match=r"damaged|does not fit|has format"):
                pr.load(layer, path)
    assert_same_state(layer, before)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (SKLinear(64, 48, 1, 4), r"'S1s' is \(1, 64, 8\) in the file and \(1, 64, 4\) in the module"),
        (SKLinear(64, 48, 1, 8, bias=False), "it has besides bias"),
        (nn.Linear(64, 48), "it lacks weight; it has besides S1s, S2s, U1s and 1 more"),
    ],
    ids=["shape", "bias", "kind"],
)
def test_a_file_of_another_model_is_refused(tmp_path, other, message):
    pr.save(SKLinear(64, 48, 1, 8), tmp_path / "model.safetensors")
    before = copy.deepcopy(other)
    with pytest.raises(CheckpointError, match=message):
        pr.load(other, tmp_path / "model.safetensors")
    assert_same_state(other, before)


def test_not_strict_says_what_was_left(tmp_path):
    layer = SKLinear(64, 48, 1, 8)
    pr.save(layer, tmp_path / "model.safetensors")
    other = SKLinear(64, 48, 1, 8, bias=False)
    assert pr.load(other, tmp_path / "model.safetensors", strict=False) == ([], ["bias"])
    assert torch.equal(other.S1s, layer.S1s)


def test_files_that_are_none(tmp_path):
    with pytest.raises(CheckpointError, match="does not exist"):
        read(tmp_path / "none.safetensors")
    with pytest.raises(CheckpointError, match="is not a file"):
        read(tmp_path)
    (tmp_path / "text").write_text("not a checkpoint")
    with pytest.raises(CheckpointError, match="is damaged or not a safetensors file"):
        read(tmp_path / "text")
    with pytest.raises(CheckpointError, match="cannot write"):
        pr.save(nn.Linear(2, 2), tmp_path / "text" / "model.safetensors")


def test_what_cannot_be_saved(tmp_path):
    class Extra(nn.Module):
        def get_extra_state(self):
            return {"steps": 3}

    with pytest.raises(CheckpointError, match="'_extra_state' is a dict"):
        pr.save(Extra(), tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="'weight' is on the device 'meta'"):
        pr.save(nn.Linear(2, 2, device="meta"), tmp_path / "model.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_an_older_file_stays_when_writing_fails(tmp_path, monkeypatch):
    path = tmp_path / "model.safetensors"
    pr.save(nn.Linear(2, 2), path)
    before = path.read_bytes()

    def fail(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(CheckpointError, match="No space left on device"):
        pr.save(nn.Linear(2, 2), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_views_of_one_tensor_are_saved_each_for_itself(tmp_path):
    torch.manual_seed(0)
    whole, complex_ = torch.randn(4, 4), torch.randn(3, dtype=torch.complex64)
    views = {
        "whole": whole,
        "rows": whole[:2],
        "flat": whole.view(16),
        "turned": whole.t(),
        "z": complex_,
        "conjugate": complex_.conj(),
        "negative": torch._neg_view(complex_.real),
    }
    saved, loaded = nn.Module(), nn.Module()
    for name, view in views.items():
        saved.register_buffer(name, view)
        loaded.register_buffer(name, torch.zeros(view.shape, dtype=view.dtype))
    pr.save(saved, tmp_path / "views.safetensors")
    pr.load(loaded, tmp_path / "views.safetensors")
    for name, view in views.items():
        assert torch.equal(loaded.get_buffer(name), view), name


def test_lazy_layers_take_their_sizes_from_the_file_and_cannot_be_saved_before(tmp_path):
    lazy = nn.Sequential(nn.LazyLinear(3))
    with pytest.raises(CheckpointError, match=r"'0\.weight' is not initialized"):
        pr.save(lazy, tmp_path / "a.safetensors")
    linear = nn.Sequential(nn.Linear(4, 3))
    pr.save(linear, tmp_path / "a.safetensors")
    pr.load(lazy, tmp_path / "a.safetensors")
    assert torch.equal(lazy[0].weight, linear[0].weight)


def test_sparse_tensors_are_refused_by_name(tmp_path):
    module = nn.Module()
    module.register_buffer("mask", torch.eye(3).to_sparse())
    with pytest.raises(CheckpointError, match=r"'mask' has layout torch\.sparse_coo"):
        pr.save(module, tmp_path / "a.safetensors")
