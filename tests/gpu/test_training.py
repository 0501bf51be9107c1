"""Training on a CUDA device: steps that don't wait for it, with the results of the CPU."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import panther as pr
from panther.train import fit

pytestmark = pytest.mark.gpu


class Pinned:
    """Pinned batches; from the second one on, a wait for the device is an error."""

    sampler = generator = None
    batch_size = 64

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(512, 64, generator=generator)
        y = (x @ torch.randn(64, 4, generator=generator)).argmax(dim=1)
        self.rows = TensorDataset(x, y)

    def __len__(self) -> int:
        return 8

    def __iter__(self):
        try:
            for number, (x, y) in enumerate(DataLoader(self.rows, batch_size=self.batch_size)):
                if number == 1:
                    torch.cuda.set_sync_debug_mode("error")
                yield x.pin_memory(), y.pin_memory()
        finally:
            torch.cuda.set_sync_debug_mode("default")


# relative rounding error of a product: of 128 float32 numbers added in some order, or of one result in bfloat16
ROUNDING = {"float32": 128 * 2**-24, "bfloat16": 2**-9}
# two for each sketched layer, and the nn.Linear
PRODUCTS = 5


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_steps_do_not_wait_for_the_device(precision):
    # the nn.Linear at the end draws from torch's own generator, and dropout would draw differently on each device
    torch.manual_seed(1)
    initial = pr.nn.sketched_mlp(64, [128], 4, dropout=0.0, generator=torch.Generator().manual_seed(1))
    losses = []
    for device in ("cpu", "cuda"):
        model = copy.deepcopy(initial).to(device)
        losses.append([result.loss for result in fit(model, Pinned(), epochs=3, lr=1e-2, precision=precision)])
    assert losses[1] == pytest.approx(losses[0], rel=PRODUCTS * ROUNDING[precision])
    assert losses[0][2] < 0.8 * losses[0][0]
