"""What runs on CUDA are planned by: batch sizes, pieces of long copies, tensors that can have a buffer, errors."""

import numpy as np
import pytest

from app.runtime.cuda import transfer
from app.runtime.cuda.graphs import NoBuffersError, check_buffers, relative_error
from app.runtime.cuda.sizes import batch_sizes, size_index
from app.runtime.tensors import TensorSpec


@pytest.mark.parametrize(
    ("max_rows", "expected"),
    [(1, (1,)), (2, (1, 2)), (5, (1, 2, 4, 5)), (8, (1, 2, 4, 8)), (100, (1, 2, 4, 8, 16, 32, 64, 100))],
)
def test_batch_sizes_are_powers_of_two_and_the_maximum(max_rows, expected):
    assert batch_sizes(max_rows) == expected


@pytest.mark.parametrize("max_rows", [1, 2, 3, 7, 8, 9, 100, 256])
def test_the_smallest_size_that_holds_the_rows_is_taken(max_rows):
    sizes = batch_sizes(max_rows)
    for rows in range(1, max_rows + 1):
        assert sizes[size_index(rows)] == min(size for size in sizes if size >= rows)


@pytest.mark.parametrize("rows", [1, 2, 5, 6, 7, 100])
@pytest.mark.parametrize("row_bytes", [1, 100, 70_000, 1_000_000])
def test_pieces_hold_all_rows_in_their_order(rows, row_bytes):
    x = np.arange(rows)
    for parts in (x, [x[: rows // 2], x[rows // 2 :]], [x[at : at + 1] for at in range(rows)]):
        pieces = list(transfer.pieces(parts, row_bytes))
        assert [size for _, size in pieces] == [len(transfer.joined(piece)) for piece, _ in pieces]
        np.testing.assert_array_equal(np.concatenate([transfer.joined(piece) for piece, _ in pieces]), x)


def test_the_last_pieces_are_small():
    sizes = [size for _, size in transfer.pieces(np.zeros((1024, 1)), 1024)]
    assert sizes == [512, 256, 128, 64, 64]


def spec(name="x", datatype="FP32", shape=(None, 4)):
    dtype = np.dtype(object) if datatype == "BYTES" else np.dtype(np.float32)
    return TensorSpec(name, datatype, dtype, shape, tuple("n" if size is None else None for size in shape))


@pytest.mark.parametrize(
    ("tensor", "batched", "reason"),
    [
        (spec("words", "BYTES"), True, "'words' holds strings"),
        (spec(shape=(None, None)), True, r"'x' has more dynamic dimensions than the batch: \(n, n\)"),
        (spec(), False, r"'x' has more dynamic dimensions than the batch: \(n, 4\)"),
        (spec(shape=(None, 0)), True, r"'x' is empty: \(n, 0\)"),
    ],
)
def test_tensors_that_can_have_no_buffer(tensor, batched, reason):
    with pytest.raises(NoBuffersError, match=reason):
        check_buffers([spec("good")] if batched else [spec("good", shape=(3,))], [tensor], batched=batched)


@pytest.mark.parametrize(
    ("mine", "expected", "error"),
    [
        ([1.0, 2.0], [1.0, 4.0], 0.5),
        ([np.nan, 4.0], [np.nan, 4.0], 0.0),
        ([1.0, 4.0], [np.nan, 4.0], np.inf),
        ([np.inf], [np.inf], 0.0),
        ([np.nan], [1.0], np.nan),
    ],
)
def test_relative_errors(mine, expected, error):
    found = relative_error(np.array(mine, np.float32), np.array(expected, np.float32), spec())
    assert found == error or (np.isnan(error) and np.isnan(found))
