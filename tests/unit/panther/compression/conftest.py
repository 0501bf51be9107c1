import pytest
import torch
from torch import nn


class Encoder(nn.Module):
    """An embedding, wide layers whose weights have falling spectra, and layers that read one tensor."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(500, 64)
        self.left, self.right = nn.Linear(64, 128), nn.Linear(64, 128)
        self.wide = nn.Linear(128, 256)
        self.head = nn.Linear(256, 10)
        with torch.no_grad():
            for layer in (self.left, self.right, self.wide):
                U, S, Vh = torch.linalg.svd(layer.weight, full_matrices=False)
                layer.weight.copy_(U * (S * torch.arange(1, len(S) + 1) ** -0.7) @ Vh * 3)

    def forward(self, tokens):
        h = self.table(tokens)
        return self.head(torch.relu(self.wide(torch.tanh(self.left(h)) + self.right(h))))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Encoder().eval()


@pytest.fixture
def tokens():
    return torch.randint(0, 500, (96, 6), generator=torch.Generator().manual_seed(2))


@pytest.fixture
def error():
    """‖y - ŷ‖ / ‖y‖ of two models on an input."""

    def of(model, other, x):
        with torch.no_grad():
            y, y_hat = model(x), other(x)
        return float((y - y_hat).norm() / y.norm())

    return of
