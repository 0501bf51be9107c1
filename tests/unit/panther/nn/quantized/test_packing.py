"""Packed integers beside numpy's arithmetic."""

import numpy as np
import pytest
import torch

from panther.nn.quantized.packing import pack, unpack


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("count", [1, 2, 7, 16])
def test_what_is_packed_is_unpacked(bits, count):
    levels = torch.randint(0, 2**bits, (3, 5, count), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    packed = pack(levels, bits)
    assert packed.shape == (3, 5, -(-count * bits // 8))
    assert torch.equal(unpack(packed, bits, count), levels)


def test_two_integers_of_four_bits_share_a_byte():
    levels = torch.arange(16, dtype=torch.uint8).reshape(2, 8)
    wanted = levels.numpy()[:, 0::2] + 16 * levels.numpy()[:, 1::2].astype(int)
    np.testing.assert_array_equal(pack(levels, 4).numpy(), wanted)
