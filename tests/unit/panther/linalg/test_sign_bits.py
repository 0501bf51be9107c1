from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from panther.linalg.sign_bits import pack_signs, sign_magnitude, unpack_signs

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def signs(*shape: int, magnitude: float = 1 / math.sqrt(3), dtype: torch.dtype = torch.float32) -> torch.Tensor:
    bits = torch.randint(0, 2, shape, generator=torch.Generator().manual_seed(0))
    return torch.where(bits == 1, torch.tensor(magnitude, dtype=dtype), torch.tensor(-magnitude, dtype=dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1,), (8,), (9,), (3, 5, 7), (2, 64, 16)], ids=str)
def test_signs_survive_packing_bit_for_bit(shape, dtype):
    matrix = signs(*shape, dtype=dtype)
    magnitude = sign_magnitude(matrix)
    packed = pack_signs(matrix)
    assert packed.dtype == torch.uint8
    assert packed.shape == (math.ceil(matrix.numel() / 8),)
    unpacked = unpack_signs(packed, shape, magnitude, dtype)
    assert unpacked.dtype == dtype
    assert torch.equal(unpacked, matrix)


def test_the_order_is_that_of_numpy_packbits():
    matrix = signs(5, 7)
    expected = np.packbits(np.sign(matrix.numpy()).ravel() > 0)
    np.testing.assert_array_equal(pack_signs(matrix).numpy(), expected)
    # a view is packed in its own order, not in that of its memory
    np.testing.assert_array_equal(pack_signs(matrix.T).numpy(), np.packbits(matrix.numpy().T.ravel() > 0))


@pytest.mark.parametrize(
    "tensor",
    [
        torch.tensor([0.5, -0.25]),
        torch.tensor([0.5, 0.0]),
        torch.tensor([0.0, 0.0]),
        torch.tensor([float("inf"), float("-inf")]),
        torch.tensor([float("nan"), float("nan")]),
        torch.tensor([0.5, float("nan")]),
        torch.tensor([]),
        torch.tensor([1, -1]),
    ],
    ids=str,
)
def test_what_is_not_of_one_magnitude_has_none(tensor):
    assert sign_magnitude(tensor) is None


@pytest.mark.parametrize(
    "packed",
    [torch.zeros(3, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64), torch.zeros(1, 2, dtype=torch.uint8)],
    ids=lambda tensor: f"{tensor.dtype}{tuple(tensor.shape)}",
)
def test_packed_of_the_wrong_size_or_type_is_refused(packed):
    with pytest.raises(ValueError, match=r"9 signs take \(2,\) of torch.uint8"):
        unpack_signs(packed, (3, 3), 1.0, torch.float32)
