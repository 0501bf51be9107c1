"""The second shipped model: a larger digit reader, trained dense and compressed to less than a hundredth of its bytes.

    python examples/compressed_digits.py              as models/digits-small was made; three minutes on a core
    python examples/compressed_digits.py --to mine    into a model repository of yours

The training rows alone decide what becomes of each layer. Both accuracies are measured on the same rows, which neither
the training nor the compression has seen, and the times of both networks in turn.
"""

import argparse
import functools
import time
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader

import panther as pr
from panther.export import Input, Output, Training
from panther.train import evaluate, fit, load_digits


class Net(nn.Module):
    """784 → width → width → 10."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(784, width), nn.Linear(width, width), nn.Linear(width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map rows (N, 784) to logits (N, 10)."""
        return self.fc3(torch.relu(self.fc2(torch.relu(self.fc1(x)))))


def main() -> None:
    """Train, compress, export."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", type=Path, default=Path("models"), help="the model repository")
    parser.add_argument("--width", type=int, default=1024, help="of the hidden layers")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max-error", type=float, default=0.1, help="of the outputs, on the training rows")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(arguments.seed)
    data = load_digits(seed=arguments.seed)
    generator = torch.Generator().manual_seed(arguments.seed)
    batches = DataLoader(data.train, batch_size=64, shuffle=True, generator=generator)
    test = DataLoader(data.test, batch_size=512)
    augment = None if data.augment is None else functools.partial(data.augment, generator=generator)

    network = Net(arguments.width)
    began = time.perf_counter()
    fit(network, batches, epochs=arguments.epochs, lr=1e-3, augment=augment)
    network.eval()
    compressed = pr.compress(network, calibration=data.train_x.split(250), max_error=arguments.max_error)
    duration_s = time.perf_counter() - began
    print(compressed.report)
    dense, ours = evaluate(network, test), evaluate(compressed.model, test)
    print(f"accuracy on {len(data.test_x)} held-out digits: {ours:.4f}, of the dense network {dense:.4f}")

    report = compressed.export(
        arguments.to,
        name="digits-small",
        example_inputs=data.test_x,
        inputs=[Input("x", "rows of 784 features")],
        outputs=[Output("logits", "one score a class", kind="logits", labels=data.labels)],
        description=f"A digit reader of {arguments.width} hidden units, compressed after its training",
        preprocessing=data.preprocessing,
        training=Training(
            dataset=data.name,
            train_rows=len(data.train_x),
            test_rows=len(data.test_x),
            epochs=arguments.epochs,
            seed=arguments.seed,
            duration_s=round(duration_s, 2),
            metrics={"test_accuracy": ours},
            dense_twin_metrics={"test_accuracy": dense},
        ),
        num_threads=1,
    )
    twin_bytes = report.card.dense_twin.weight_bytes
    print(f"wrote {report.path}: {report.file_bytes:,} bytes, weights of the dense network: {twin_bytes:,}")


if __name__ == "__main__":
    main()
