"""A custom training loop: learning rates by group, clipping, a layer that grows, a compact checkpoint.

    python examples/custom_loop.py        a few seconds on two cores

Sketched layers are ordinary modules: any loop, optimizer, scheduler or trainer does. What they gain from is here.
"""

from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

import panther as pr

EPOCHS, BATCH = 6, 64


def main() -> None:
    """Train, grow in the middle, save, load."""
    torch.manual_seed(0)
    torch.set_num_threads(1)  # small products: a second thread would mostly wait
    x = torch.randn(4096, 128)
    y = (x @ torch.randn(128, 8)).argmax(1)
    x, y, test_x, test_y = x[:3072], y[:3072], x[3072:], y[3072:]

    growing = pr.nn.ProgressiveSKLinear(256, 256, initial_terms=1, max_terms=2, initial_rank=8, max_rank=32)
    model = nn.Sequential(nn.Linear(128, 256), nn.ReLU(), growing, nn.ReLU(), nn.Linear(256, 8))

    # S1s and S2s take larger steps than the rest: each is one of two factors of a product
    optimizer = torch.optim.AdamW(pr.param_groups(model, sketch_lr=2e-3, lr=1e-3, weight_decay=0.01))
    for epoch in range(1, EPOCHS + 1):
        if epoch in (3, 5) and growing.increase_complexity(optimizer):
            layer = growing.current_layer
            print(f"epoch {epoch}: grown to L={layer.num_terms}, k={layer.low_rank}; the function is the same")
        total = 0.0
        for rows in torch.randperm(len(x)).split(BATCH):
            loss = F.cross_entropy(model(x[rows]), y[rows])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            total += loss.item() * len(rows)
        with torch.no_grad():
            accuracy = (model(test_x).argmax(1) == test_y).float().mean()
        print(f"epoch {epoch}: loss {total / len(x):.3f}, accuracy {accuracy:.3f}")

    path = Path("model.safetensors")
    pr.save(model, path)
    fresh = nn.Sequential(
        nn.Linear(128, 256),
        nn.ReLU(),
        pr.nn.ProgressiveSKLinear(256, 256, initial_terms=1, max_terms=2, initial_rank=8, max_rank=32),
        nn.ReLU(),
        nn.Linear(256, 8),
    )
    pr.load(fresh, path)
    with torch.no_grad():
        same = torch.equal(fresh(test_x), model(test_x))
    floats = 4 * sum(tensor.numel() for tensor in model.state_dict().values())
    print(f"{path}: {path.stat().st_size:,} bytes, {floats:,} as floats; loaded again, equal to the bit: {same}")


if __name__ == "__main__":
    main()
