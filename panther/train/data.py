"""Data sets to train on: scikit-learn's bundled digits, and files of the user's own."""

from __future__ import annotations

import dataclasses
import functools
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from panther.train.augment import Augment, shift_turn_scale
from panther.train.targets import Task

TEST_FRACTION = 0.25


@dataclass(frozen=True)
class Dataset:
    """Rows to train on and rows held out, with their targets.

    Attributes:
        name: what the data is, in a line.
        train_x: (N, features) float32.
        train_y: (N,) int64, indices into labels, for classification; (N, targets) float32 for regression, and of zeros
            and ones for several labels a row.
        test_x, test_y: the same of the held-out rows.
        labels: the names of the classes, or of the labels; empty for regression.
        preprocessing: what was done to the raw data before it became rows.
        augment: changes a batch of training rows at random and leaves the classes; None where no such change is known.
        task: what the targets are.
        columns: the names of the features; empty where they have none.
    """

    name: str
    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor
    labels: tuple[str, ...]
    preprocessing: str
    augment: Augment | None = None
    task: Task = "classification"
    columns: tuple[str, ...] = ()

    @property
    def outputs(self) -> int:
        """Width of the output that a model of this data needs."""
        return len(self.labels) or self.train_y.shape[1]

    @property
    def train(self) -> TensorDataset:
        """Rows and classes to train on."""
        return TensorDataset(self.train_x, self.train_y)

    @property
    def test(self) -> TensorDataset:
        """Rows and classes held out."""
        return TensorDataset(self.test_x, self.test_y)


def load_digits(*, seed: int = 0) -> Dataset:
    """Load scikit-learn's 1,797 handwritten digits, resized from 8x8 to 28x28, a quarter of each class held out.

    Pixels are between 0 (paper) and 1 (ink), rows of the image one after another.
    """
    from sklearn import datasets

    bunch = datasets.load_digits()
    small = torch.from_numpy(bunch.images).float().unsqueeze(1) / 16
    images = F.interpolate(small, size=(28, 28), mode="bilinear", align_corners=False)
    x, y = images.flatten(1).numpy(), bunch.target.astype(np.int64)
    return _split(
        "scikit-learn digits (UCI, 1,797 images), 8x8 resized to 28x28",
        x,
        y,
        tuple(str(label) for label in range(10)),
        "28x28 grey image, 0 = paper and 1 = ink, flattened row by row; made from 8x8 by bilinear resizing",
        seed=seed,
        augment=functools.partial(shift_turn_scale, side=28),
    )


def load_npz(path: Path, *, seed: int = 0) -> Dataset:
    """Load rows and targets from an .npz file with the arrays ``x`` and ``y``.

    Args:
        path: the file. ``x``: (N, …), numbers, flattened to rows. ``y``: (N,), class names or integers; for regression
            floating-point numbers, (N,) or (N, targets); for several labels a row zeros and ones, (N, labels).
            With ``x_test`` and ``y_test`` these are held out; else a quarter is, of each class where there are classes.
            ``columns`` may name the features.
        seed: of the split.

    Raises:
        ValueError: the file is no .npz, or an array is missing or wrong; says which and how.
    """
    arrays = _read(path)
    return dataclasses.replace(_dataset(path, arrays, seed=seed), columns=_columns(path, arrays))


def _columns(path: Path, arrays: dict[str, np.ndarray[Any, Any]]) -> tuple[str, ...]:
    if "columns" not in arrays:
        return ()
    names, features = arrays["columns"], _rows(path, arrays, "x").shape[1]
    if names.dtype.kind != "U" or names.shape != (features,) or len(set(names.tolist())) < features:
        raise ValueError(
            f"{path}: 'columns' must be {features} distinct names, one for each feature; it is {names.dtype} of "
            f"shape {names.shape}"
        )
    return tuple(names.tolist())


def _dataset(path: Path, arrays: dict[str, np.ndarray[Any, Any]], *, seed: int) -> Dataset:
    task = _task(path, arrays)
    if task != "classification":
        return _numbers(path, arrays, task, seed=seed)
    x, y = _rows(path, arrays, "x"), _classes(path, arrays, "y")
    _same_length(path, "x", x, "y", y)
    names, indices = np.unique(y, return_inverse=True)
    labels = tuple(str(name) for name in names)
    if len(labels) < 2:
        raise ValueError(f"{path}: 'y' holds {len(labels)} class; at least 2 are needed")
    preprocessing = "none: raw features; the model standardizes them itself"
    if "x_test" not in arrays and "y_test" not in arrays:
        return _split(path.name, x, indices, labels, preprocessing, seed=seed)
    x_test, y_test = _rows(path, arrays, "x_test"), _classes(path, arrays, "y_test")
    _same_length(path, "x_test", x_test, "y_test", y_test)
    if x_test.shape[1] != x.shape[1]:
        raise ValueError(f"{path}: 'x_test' has {x_test.shape[1]} features and 'x' {x.shape[1]}")
    unknown = sorted(set(y_test.tolist()) - set(names.tolist()))
    if unknown:
        raise ValueError(f"{path}: 'y_test' holds classes that 'y' does not: {unknown[:5]}")
    return Dataset(
        path.name,
        torch.from_numpy(x),
        torch.from_numpy(indices.astype(np.int64)),
        torch.from_numpy(x_test),
        torch.from_numpy(np.searchsorted(names, y_test).astype(np.int64)),
        labels,
        preprocessing,
    )


def _read(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    way_out = "write one by numpy.savez(path, x=rows, y=targets)"
    try:
        if not zipfile.is_zipfile(path) and Path(path).stat():
            raise ValueError(f"{path} is not an .npz file with the arrays 'x' and 'y'; {way_out}")
        with np.load(path, allow_pickle=False) as archive:
            return {key: archive[key] for key in archive.files}
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist") from None
    except (OSError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} cannot be read as an .npz file: {error}") from error
    except ValueError as error:
        if "allow_pickle" not in str(error):
            raise
        raise ValueError(f"{path} holds an array of Python objects; arrays must hold numbers or text") from None


def _task(path: Path, arrays: dict[str, np.ndarray[Any, Any]]) -> Task:
    y = _array(path, arrays, "y")
    if y.dtype.kind == "f" and y.ndim in (1, 2):
        return "regression"
    if y.ndim == 2 and y.dtype.kind in "iub" and np.isin(y, (0, 1)).all():
        return "multilabel"
    return "classification"


def _numbers(path: Path, arrays: dict[str, np.ndarray[Any, Any]], task: Task, *, seed: int) -> Dataset:
    """A data set of regression, or of several labels a row."""
    from sklearn.model_selection import train_test_split

    x, y = _rows(path, arrays, "x"), _targets(path, arrays, "y")
    _same_length(path, "x", x, "y", y)
    if "x_test" in arrays or "y_test" in arrays:
        x_test, y_test = _rows(path, arrays, "x_test"), _targets(path, arrays, "y_test")
        _same_length(path, "x_test", x_test, "y_test", y_test)
        if task == "multilabel" and not np.isin(y_test, (0, 1)).all():
            raise ValueError(f"{path}: 'y_test' must hold zeros and ones alone, as 'y' does")
        for key, found, wanted in (("x", x_test, x), ("y", y_test, y)):
            if found.shape[1] != wanted.shape[1]:
                columns = f"'{key}_test' has {found.shape[1]} columns and {key!r} {wanted.shape[1]}"
                raise ValueError(f"{path}: {columns}; they must be the same")
    elif len(x) < 4:
        raise ValueError(f"{path}: cannot hold out a quarter of {len(x)} rows; at least 4 are needed")
    else:
        x, x_test, y, y_test = train_test_split(x, y, test_size=TEST_FRACTION, random_state=seed)
    return Dataset(
        path.name,
        torch.from_numpy(x),
        torch.from_numpy(y),
        torch.from_numpy(x_test),
        torch.from_numpy(y_test),
        labels=tuple(str(i) for i in range(y.shape[1])) if task == "multilabel" else (),
        preprocessing="none: raw features; the model standardizes them itself",
        task=task,
    )


def _targets(path: Path, arrays: dict[str, np.ndarray[Any, Any]], key: str) -> np.ndarray[Any, Any]:
    y = _array(path, arrays, key)
    if y.ndim not in (1, 2) or y.dtype.kind not in "fiub":
        raise ValueError(
            f"{path}: {key!r} must be (rows,) or (rows, targets) numbers; it is {y.dtype} of shape {y.shape}"
        )
    found: np.ndarray[Any, Any] = np.ascontiguousarray(y.reshape(len(y), -1), dtype=np.float32)
    if not np.isfinite(found).all():
        row = int(np.flatnonzero(~np.isfinite(found).all(axis=1))[0])
        raise ValueError(f"{path}: {key!r} holds a value in row {row} that is not a finite float32")
    return found


def _split(
    name: str,
    x: np.ndarray[Any, Any],
    y: np.ndarray[Any, Any],
    labels: tuple[str, ...],
    preprocessing: str,
    *,
    seed: int,
    augment: Augment | None = None,
) -> Dataset:
    from sklearn.model_selection import train_test_split

    try:
        train_x, test_x, train_y, test_y = train_test_split(
            x, y, test_size=TEST_FRACTION, stratify=y, random_state=seed
        )
    except ValueError as error:
        raise ValueError(f"{name}: cannot hold out a quarter of each class: {error}") from error
    return Dataset(
        name,
        torch.from_numpy(train_x),
        torch.from_numpy(train_y.astype(np.int64)),
        torch.from_numpy(test_x),
        torch.from_numpy(test_y.astype(np.int64)),
        labels,
        preprocessing,
        augment,
    )


def _array(path: Path, arrays: dict[str, np.ndarray[Any, Any]], key: str) -> np.ndarray[Any, Any]:
    if key not in arrays:
        raise ValueError(f"{path} holds the arrays {sorted(arrays)}; {key!r} is missing")
    if arrays[key].ndim == 0 or len(arrays[key]) == 0:
        raise ValueError(f"{path}: {key!r} is empty")
    return arrays[key]


def _rows(path: Path, arrays: dict[str, np.ndarray[Any, Any]], key: str) -> np.ndarray[Any, Any]:
    x = _array(path, arrays, key)
    if x.ndim < 2 or x.dtype.kind not in "fiub":
        raise ValueError(f"{path}: {key!r} must be (rows, features…) numbers; it is {x.dtype} of shape {x.shape}")
    rows: np.ndarray[Any, Any] = np.ascontiguousarray(x.reshape(len(x), -1), dtype=np.float32)
    if not np.isfinite(rows).all():
        row = int(np.flatnonzero(~np.isfinite(rows).all(axis=1))[0])
        raise ValueError(f"{path}: {key!r} holds a value in row {row} that is not a finite float32")
    return rows


def _classes(path: Path, arrays: dict[str, np.ndarray[Any, Any]], key: str) -> np.ndarray[Any, Any]:
    y = _array(path, arrays, key)
    if y.ndim != 1 or y.dtype.kind not in "iuUb":
        raise ValueError(
            f"{path}: {key!r} must be (rows,) integers or strings, a class each; it is {y.dtype} of shape {y.shape}"
        )
    return y


def _same_length(path: Path, x_key: str, x: np.ndarray[Any, Any], y_key: str, y: np.ndarray[Any, Any]) -> None:
    if len(x) != len(y):
        raise ValueError(f"{path}: {x_key!r} has {len(x)} rows and {y_key!r} {len(y)}")
