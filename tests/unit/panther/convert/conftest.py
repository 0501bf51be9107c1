import pytest
import torch
from torch import nn


@pytest.fixture
def mlp():
    """96 → 128 → 96 → 10, with weights of falling spectra as trained ones have."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(96, 128), nn.ReLU(), nn.Linear(128, 96), nn.ReLU(), nn.Linear(96, 10))
    with torch.no_grad():
        for layer in (model[0], model[2]):
            U, S, Vh = torch.linalg.svd(layer.weight, full_matrices=False)
            layer.weight.copy_(U * (S[0] * torch.arange(1, len(S) + 1) ** -0.6) @ Vh)
    return model


@pytest.fixture
def inputs():
    """(400, 96), correlated, with a mean."""
    generator = torch.Generator().manual_seed(1)
    mix = torch.randn(96, 96, generator=generator) * torch.arange(1, 97) ** -0.5
    return torch.randn(400, 96, generator=generator) @ mix.t() + 0.5
