"""Training on a CUDA device: steps that don't wait for it, with the results of the CPU."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import panther as pr
from panther.train import fit

pytestmark = [
    pytest.mark.gpu,
    # that not every wait is found
    pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype"),
]


class Pinned:
    """Pinned batches; from the second one on, a wait for the device is an error."""

    sampler = generator = None
    batch_size = 64

    def __init__(self, task: str) -> None:
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(512, 64, generator=generator)
        y = x @ torch.randn(64, 4, generator=generator)
        y = {"classes": y.argmax(dim=1), "labels": (y > 0).float(), "probabilities": y.softmax(dim=1)}[task]
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


@pytest.mark.parametrize("task", ["classes", "labels", "probabilities"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_steps_do_not_wait_for_the_device(task, precision):
    # the nn.Linear at the end draws from torch's own generator, and dropout would draw differently on each device
    torch.manual_seed(1)
    initial = pr.nn.sketched_mlp(64, [128], 4, dropout=0.0, generator=torch.Generator().manual_seed(1))
    losses = []
    for device in ("cpu", "cuda"):
        model = copy.deepcopy(initial).to(device)
        losses.append([result.loss for result in fit(model, Pinned(task), epochs=3, lr=1e-2, precision=precision)])
    assert losses[1] == pytest.approx(losses[0], rel=PRODUCTS * ROUNDING[precision])
    assert losses[0][2] < 0.8 * losses[0][0]


def test_distillation_reads_losses_after_ten_steps():
    """From the fourth step on all three batches are known; from then to the ninth a wait is an error."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(1)
    teacher = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 64)).cuda()
    inputs = [torch.randn(64, 64, generator=generator).cuda() for _ in range(4)]
    student = copy.deepcopy(teacher)
    pr.sketch_(student, ratio=0.5)
    steps = 0

    def forward(model: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
        nonlocal steps
        if model is not teacher and torch.is_grad_enabled():
            steps += 1
            torch.cuda.set_sync_debug_mode("error" if 4 <= steps < 10 else "default")
        return model(x)

    try:
        options = {"validation": inputs[3:], "steps": 400, "patience": 1, "forward": forward, "progress": False}
        result = pr.distill_(student, teacher, inputs[:3], **options)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert steps == result.steps >= 20
    assert result.error < result.error_before
