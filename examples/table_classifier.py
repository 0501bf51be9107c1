"""A classifier of table data: from a CSV file to a served model.

    python examples/table_classifier.py                             scikit-learn's breast cancer table
    python examples/table_classifier.py rows.csv --label species    your own: numbers, and one column of classes

Ask it with ``panther serve`` and the command that the script prints.
"""

import argparse
import csv
import json
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import panther as pr
from panther.export import Column, Input, Output, Training, export_onnx
from panther.train import evaluate, fit


def read_csv(path: Path, label: str) -> tuple[np.ndarray, np.ndarray, list[str], list[str]]:
    """Rows (N, features), class indices (N,), the columns' names and the classes' names."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if not rows or label not in rows[0]:
        raise SystemExit(f"{path}: there is no column {label!r}; columns: {', '.join(rows[0]) if rows else 'none'}")
    columns = [name for name in rows[0] if name != label]
    x = np.array([[float(row[name]) for name in columns] for row in rows], np.float32)
    classes, y = np.unique([row[label] for row in rows], return_inverse=True)
    return x, y, columns, [str(name) for name in classes]


def write_example_csv(path: Path) -> None:
    """scikit-learn's breast cancer data as anybody would have it in a file."""
    from sklearn.datasets import load_breast_cancer

    bunch = load_breast_cancer()
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*bunch.feature_names, "diagnosis"])
        for row, target in zip(bunch.data, bunch.target, strict=True):
            writer.writerow([*row, bunch.target_names[target]])


class Standardised(nn.Module):
    """Takes raw columns: mean and standard deviation of the training rows travel in the model file."""

    def __init__(self, mean: torch.Tensor, std: torch.Tensor, network: nn.Module) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)
        self.network = network

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map raw rows (N, features) to logits (N, classes)."""
        return self.network((x - self.mean) / self.std)


def main() -> None:
    """Read, train, export."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("csv", type=Path, nargs="?")
    parser.add_argument("--label", default="diagnosis", help="the column that holds the class")
    parser.add_argument("--to", type=Path, default=Path("models"), help="the model repository")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)  # small products: a second thread would mostly wait
    path = arguments.csv
    if path is None:
        path = Path("breast_cancer.csv")
        write_example_csv(path)

    x, y, columns, classes = read_csv(path, arguments.label)
    order = np.random.default_rng(0).permutation(len(x))
    held_out, used = order[: len(x) // 4], order[len(x) // 4 :]
    train_x, train_y = torch.from_numpy(x[used]), torch.from_numpy(y[used])
    test_x, test_y = torch.from_numpy(x[held_out]), torch.from_numpy(y[held_out])

    # 30 columns are too few for the first layer to pay, and the last one is small: the middle one is sketched
    network = nn.Sequential(
        nn.Linear(len(columns), 256),
        nn.ReLU(),
        pr.nn.SKLinear(256, 256, num_terms=1, low_rank=32),
        nn.ReLU(),
        nn.Linear(256, len(classes)),
    )
    std = train_x.std(0)
    model = Standardised(train_x.mean(0), torch.where(std > 0, std, torch.ones_like(std)), network)
    fit(model, DataLoader(TensorDataset(train_x, train_y), batch_size=32, shuffle=True), epochs=15, lr=1e-3)
    accuracy = evaluate(model, DataLoader(TensorDataset(test_x, test_y), batch_size=256))
    largest = 100 * np.bincount(y).max() / len(y)
    print(f"accuracy {accuracy:.3f} on {len(test_x)} held-out rows; the largest class is {largest:.0f}% of all")

    # real rows for the dashboard to try; as people write them: 17.99 and not 17.989999771118164
    samples = tuple(tuple(float(str(value)) for value in row.numpy()) for row in test_x[:3])
    report = export_onnx(
        model,
        test_x,
        arguments.to,
        name="table",
        inputs=[Input("x", "measurements of one row", tuple(map(Column, columns)), samples)],
        outputs=[Output("logits", "one score a class", kind="logits", labels=tuple(classes))],
        training=Training(
            dataset=path.name, train_rows=len(train_x), test_rows=len(test_x), metrics={"test_accuracy": accuracy}
        ),
        num_threads=1,
    )
    print(f"wrote {report.path}, {report.file_bytes:,} bytes")
    Path("row.json").write_text(json.dumps({"inputs": test_x[:1].tolist()}), encoding="utf-8")
    print(f"panther serve --model-dir {arguments.to} --default-model table")
    print("curl -s localhost:8000/predict -d @row.json")


if __name__ == "__main__":
    main()
