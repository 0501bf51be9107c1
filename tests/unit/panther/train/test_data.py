"""Data files: classes, numbers, and several labels a row."""

from __future__ import annotations

import numpy as np
import pytest

from panther.train import load_npz

X = np.random.default_rng(0).standard_normal((40, 5))


def load(tmp_path, **arrays):
    np.savez(tmp_path / "data.npz", **arrays)
    return load_npz(tmp_path / "data.npz", seed=3)


@pytest.mark.parametrize("targets", [1, 2])
def test_floating_point_targets_are_a_regression(tmp_path, targets):
    y = 100 * X[:, :targets] + 5
    data = load(tmp_path, x=X, y=y[:, 0] if targets == 1 else y)
    assert (data.task, data.outputs, data.labels) == ("regression", targets, ())
    assert data.train_y.shape == (30, targets)
    np.testing.assert_allclose(data.train_y, 100 * data.train_x[:, :targets] + 5, rtol=1e-5)
    np.testing.assert_allclose(data.test_y, 100 * data.test_x[:, :targets] + 5, rtol=1e-5)


def test_columns_of_zeros_and_ones_are_labels(tmp_path):
    data = load(tmp_path, x=X, y=(X[:, :3] > 0).astype(int))
    assert (data.task, data.outputs, data.labels) == ("multilabel", 3, ("0", "1", "2"))
    np.testing.assert_array_equal(data.test_y, data.test_x[:, :3] > 0)


def test_whole_numbers_and_texts_are_classes(tmp_path):
    for y in (np.arange(40) % 4, np.array(["ape", "bee"] * 20)):
        assert load(tmp_path, x=X, y=y).task == "classification"


def test_columns_are_named(tmp_path):
    assert load(tmp_path, x=X, y=X[:, 0], columns=np.array(list("abcde"))).columns == ("a", "b", "c", "d", "e")
    assert load(tmp_path, x=X, y=X[:, 0]).columns == ()


def test_a_split_of_ones_own(tmp_path):
    y = X.sum(1)
    data = load(tmp_path, x=X, y=y, x_test=X[:3], y_test=y[:3])
    assert (len(data.train_x), len(data.test_x)) == (40, 3)


@pytest.mark.parametrize(
    ("arrays", "match"),
    [
        ({"x": X, "y": np.full(40, np.nan)}, "'y' holds a value in row 0 that is not a finite float32"),
        ({"x": X[:3], "y": X[:3, 0]}, "cannot hold out a quarter of 3 rows"),
        ({"x": X, "y": X[:7, 0]}, "'x' has 40 rows and 'y' 7"),
        ({"x": X, "y": X[:, :2], "x_test": X, "y_test": X[:, :3]}, "'y_test' has 3 columns and 'y' 2"),
        ({"x": X, "y": X[:, 0], "x_test": X}, "'y_test' is missing"),
        ({"x": X, "y": np.zeros((40, 2), int) + 3}, "'y' must be"),
        ({"x": X, "y": X[:, 0], "columns": np.array(["a", "b"])}, "'columns' must be 5 distinct names"),
        ({"x": X, "y": X[:, 0], "columns": np.array(list("abcda"))}, "'columns' must be 5 distinct names"),
        ({"x": X, "y": X[:, 0], "columns": np.arange(5)}, "'columns' must be 5 distinct names"),
        ({"x": X, "y": np.array([{}] * 40, object)}, r"data\.npz holds an array of Python objects"),
        (
            {"x": X, "y": X[:, :2] > 0, "x_test": X, "y_test": np.full((40, 2), 7)},
            "'y_test' must hold zeros and ones alone",
        ),
    ],
)
def test_wrong_targets_are_refused_by_name(tmp_path, arrays, match):
    with pytest.raises(ValueError, match=match):
        load(tmp_path, **arrays)
