"""What the tests of panther share."""

from __future__ import annotations

import pytest
import torch

# Two threads on two cores that others use too wait for each other at every small product: ten times slower than one.
torch.set_num_threads(1)


@pytest.fixture
def run():
    """Outputs of a file for inputs by name."""

    import onnxruntime

    def call(path, **feeds):
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        return session.run(None, {name: tensor.numpy() for name, tensor in feeds.items()})

    return call
