"""Integers times steps, found again to the bit."""

import pytest
import torch

from panther.linalg.levels import integer_levels, steady_steps


@pytest.mark.parametrize(("rows", "columns"), [(1, 3), (5, 1), (40, 70), (300, 9)])
def test_levels_and_steps_are_found_again(rows, columns):
    generator = torch.Generator().manual_seed(rows)
    levels = torch.randint(-127, 128, (rows, columns), generator=generator).float()
    levels[0] = 127 - torch.arange(columns) % 60  # the largest may be any from 68 on
    levels = torch.minimum(torch.maximum(levels, -levels[0]), levels[0])
    step = steady_steps(levels, torch.rand(columns, generator=generator) * 0.01 + 1e-4)
    matrix = levels * step
    found = integer_levels(matrix)
    assert found is not None
    assert found[0].dtype == torch.int8
    assert found[1].shape == (1, columns)
    assert torch.equal(found[0].float() * found[1], matrix)
    if rows > 5:
        assert torch.equal(found[0].float(), levels)


@pytest.mark.parametrize("largest", [7, 127])
@pytest.mark.parametrize("turned", [False, True])
def test_steps_of_rows_and_few_levels_are_found(largest, turned):
    generator = torch.Generator().manual_seed(largest)
    levels = torch.randint(-largest, largest + 1, (60, 9), generator=generator).float()
    levels[0] = largest
    matrix = levels * steady_steps(levels, torch.rand(9, generator=generator) + 0.01)
    found, steps = integer_levels(matrix.t() if turned else matrix)
    assert steps.shape == ((9, 1) if turned else (1, 9))
    assert torch.equal(found.float(), levels.t() if turned else levels)
    assert torch.equal(found.float() * steps, matrix.t() if turned else matrix)


def test_steps_move_by_rounding_alone():
    levels = torch.randint(-127, 128, (50, 1000), generator=torch.Generator().manual_seed(0)).float()
    step = torch.rand(1000) + 0.1
    torch.testing.assert_close(steady_steps(levels, step), step, rtol=1e-6, atol=0)


def test_trained_floats_have_none():
    generator = torch.Generator().manual_seed(0)
    assert integer_levels(torch.randn(40, 7, generator=generator)) is None
    levels = torch.randint(-127, 128, (40, 7), generator=generator).float()
    levels[0] = 127
    matrix = levels * steady_steps(levels, torch.full((7,), 0.01))
    matrix[30, 3] *= 1 + 1e-6  # a row that the sample does not hold
    assert integer_levels(matrix) is None


@pytest.mark.parametrize(
    "matrix",
    [torch.zeros(0, 3), torch.full((3, 2), torch.inf), torch.ones(3, 2, dtype=torch.float64)],
    ids=["empty", "infinite", "float64"],
)
def test_others_have_none(matrix):
    assert integer_levels(matrix) is None


def test_columns_of_zeros_are_levels():
    levels, step = integer_levels(torch.tensor([[0.0, 127.0], [0.0, 1.0]]))
    assert torch.equal(levels * step, torch.tensor([[0.0, 127.0], [0.0, 1.0]]))
    assert (step > 0).all()
