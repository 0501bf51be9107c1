"""Fixtures for the proof that rows are independent."""

import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = next(folder for folder in Path(__file__).parents if (folder / "pyproject.toml").exists())
sys.path.insert(0, str(ROOT / "tests" / "helpers"))

from row_oracle import difference, open_session, random_feeds  # noqa: E402 - found by the line above

from app.runtime.independence import prove  # noqa: E402


@pytest.fixture(scope="session")
def root():
    return ROOT


@pytest.fixture(scope="session")
def judge():
    """The proof of a model; one that is independent is compared with onnxruntime, rows alone and together."""

    def check(model, sizes=None, feeds=None, *, runs=True, **options):
        data = model if isinstance(model, bytes) else model.SerializeToString()
        proof = prove(data, **options)
        if proof.verdict == "independent" and runs:
            session = open_session(data)
            for rows in (2, 5):
                given = (
                    feeds(rows)
                    if feeds
                    else random_feeds(session, proof.input_axes, rows, np.random.default_rng(rows), sizes)
                )
                assert difference(session, proof.input_axes, proof.output_axes, given) is None, proof
        return proof

    return check
