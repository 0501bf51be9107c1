"""Convert a trained transformer encoder to half of its linear parameters.

    python examples/convert_encoder.py        about ten seconds on one core

Trains a small encoder to sort numbers, so that there is something to lose; converts it by calibration inputs without
labels, recovers the rest by distillation, exports it. Your own encoder, from transformers or elsewhere, takes its
place.
"""

import copy
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

import panther as pr
from panther.export import Input, Output, export_onnx

WIDTH, HEADS, LAYERS, LENGTH, VALUES, STEPS = 64, 4, 2, 6, 16, 200


class Block(nn.Module):
    """Attention and a feed-forward network, each with a residual; of nn.Linear layers, which can be converted."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N, length, WIDTH) to the same."""
        h = self.norm1(x)
        q, k, v = (layer(h).unflatten(-1, (HEADS, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value))
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Encoder(nn.Module):
    """Reads LENGTH numbers below VALUES and says for each place which number stands there once they are sorted."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(VALUES, WIDTH), nn.Parameter(0.02 * torch.randn(LENGTH, WIDTH))
        self.blocks = nn.Sequential(*(Block() for _ in range(LAYERS)))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, VALUES)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Map ids (N, LENGTH) to logits (N, LENGTH, VALUES)."""
        return self.head(self.norm(self.blocks(self.embed(ids) + self.place)))


def accuracy(model: nn.Module, ids: torch.Tensor) -> float:
    """The share of places with the right number."""
    with torch.no_grad():
        return float((model(ids).argmax(-1) == ids.sort(-1).values).float().mean())


def main() -> None:
    """Train, convert, distil, export."""
    torch.manual_seed(0)
    torch.set_num_threads(1)  # small products: a second thread would mostly wait
    model = Encoder()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=STEPS)
    for _ in range(STEPS):
        ids = torch.randint(VALUES, (64, LENGTH))
        loss = F.cross_entropy(model(ids).flatten(0, 1), ids.sort(-1).values.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    model.eval()
    held_out = torch.randint(VALUES, (512, LENGTH))
    print(f"original: accuracy {accuracy(model, held_out):.3f}")

    # from here on only inputs are needed, no labels
    original = copy.deepcopy(model)
    calibration = torch.randint(VALUES, (384, LENGTH)).split(64)
    report = pr.sketch_(model, ratio=0.5, calibration=calibration, skip=["head"])
    print(report)
    print(f"converted: accuracy {accuracy(model, held_out):.3f}")
    result = pr.distill_(model, original, calibration, steps=40, progress=False)
    print(f"distilled: accuracy {accuracy(model, held_out):.3f}; error {result.error_before:.3f} -> {result.error:.3f}")

    exported = export_onnx(
        model,
        held_out[:32],
        Path("models"),
        name="sorter",
        inputs=[Input("ids", f"{LENGTH} numbers below {VALUES}")],
        outputs=[Output("logits", "for each place, a score for each number")],
        num_threads=1,
    )
    print(f"wrote {exported.path}, {exported.file_bytes:,} bytes, error {exported.card.check.max_relative_error:.1e}")


if __name__ == "__main__":
    main()
