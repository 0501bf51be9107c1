"""Kernels of 4 bits: blocks, and what feedback between entries keeps."""

from __future__ import annotations

import pytest
import torch

from panther.quantize.kernels import block_size_of, four_bits, stored_bytes


@pytest.mark.parametrize(("entries", "size"), [(576, 64), (288, 48), (27, 27), (9, 9), (147, 49), (53, 53), (134, 134)])
def test_blocks_divide_the_entries_of_a_channel(entries, size):
    assert block_size_of(entries) == size


def test_bytes_are_those_of_the_kernel():
    for shape in ((8, 3, 3, 3), (16, 16, 5), (4, 7, 1, 1)):
        assert four_bits(torch.randn(*shape)).stored_bytes == stored_bytes(shape)


def test_feedback_loses_less_on_the_patches_than_the_nearest_integers():
    generator = torch.Generator().manual_seed(0)
    W = torch.randn(16, 8, 3, 3, generator=generator)
    X = torch.randn(2000, 9, generator=generator) @ torch.randn(9, 72, generator=generator)
    X += 0.3 * torch.randn(2000, 72, generator=generator)
    C = (X.t() @ X / len(X)).double()

    def lost(kernel):
        return ((X @ (W - kernel.weight).flatten(1).t()).norm() / (X @ W.flatten(1).t()).norm()).item()

    assert lost(four_bits(W, C)) < 0.7 * lost(four_bits(W))
    assert lost(four_bits(W, C, torch.eye(16).double())) < 0.7 * lost(four_bits(W))
    assert lost(four_bits(W)) < 0.15


def test_a_channel_of_zeros_stays_zero():
    W = torch.randn(4, 2, 3, 3)
    W[1] = 0
    assert not four_bits(W).weight[1].any()
