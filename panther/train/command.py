"""`panther train`: data, both networks, the table, the export."""

from __future__ import annotations

from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from panther.efficiency import ParameterCount
from panther.export import ExportReport, Input, Output, Training, export_onnx
from panther.export.repository import check_name
from panther.train.compare import Comparison, train_side_by_side
from panther.train.data import Dataset, load_digits, load_npz
from panther.train.distributed import process_group
from panther.train.loop import EpochResult


def run(
    data: Path | None,
    *,
    to: Path,
    name: str,
    epochs: int,
    batch_size: int,
    lr: float,
    seed: int,
    threads: int | None,
    console: Console,
    checkpoints: Path | None = None,
) -> tuple[Comparison, ExportReport | None]:
    """Train both networks, print what they cost and how good they are, export the sketched one.

    Under ``torchrun`` the processes train together; the first one alone prints and exports, and the others' report is
    None.
    With a folder for checkpoints a run that was killed goes on where it was.

    Raises:
        ValueError: the name or the data is wrong.
        ExportError: the file did not compute what the network does, or could not be written.
    """
    check_name(name)
    if threads is not None:
        torch.set_num_threads(threads)
    with process_group() as rank:
        if rank > 0:
            console = Console(quiet=True)
        dataset = load_digits(seed=seed) if data is None else load_npz(data, seed=seed)
        console.print(
            f"{dataset.name}: {len(dataset.train_x):,} rows to train on, {len(dataset.test_x):,} held out, "
            f"{dataset.train_x.shape[1]} features, {len(dataset.labels)} classes",
            highlight=False,
        )
        with _progress(console) as bar:
            tasks = {kind: bar.add_task(kind, total=epochs, loss=float("nan")) for kind in ("dense", "sketched")}

            def on_epoch(kind: str, result: EpochResult) -> None:
                bar.update(tasks[kind], completed=result.epoch, loss=result.loss)

            comparison = train_side_by_side(
                dataset,
                epochs=epochs,
                batch_size=batch_size,
                lr=lr,
                seed=seed,
                standardise=data is not None,
                on_epoch=on_epoch,
                checkpoints=checkpoints,
            )
        if rank > 0:
            return comparison, None
    report = _export(comparison, dataset, to=to, name=name, epochs=epochs, seed=seed)
    console.print(_table(comparison))
    twin_bytes = report.card.dense_twin.weight_bytes
    console.print(
        f"wrote {report.path}: {report.file_bytes:,} bytes (weights of the dense twin: {twin_bytes:,}); "
        f"largest difference from torch {report.card.check.max_relative_error:.1e} of the largest output",
        highlight=False,
        soft_wrap=True,
    )
    return comparison, report


def _progress(console: Console) -> Progress:
    columns = (TextColumn("{task.description:<9}"), BarColumn(), MofNCompleteColumn())
    return Progress(*columns, TextColumn("loss {task.fields[loss]:.4f}"), TimeElapsedColumn(), console=console)


def _export(comparison: Comparison, dataset: Dataset, *, to: Path, name: str, epochs: int, seed: int) -> ExportReport:
    return export_onnx(
        comparison.sketched.model,
        dataset.test_x,
        to,
        name=name,
        inputs=[Input("x", description=f"rows of {dataset.train_x.shape[1]} features")],
        outputs=[Output("logits", description="one score a class", kind="logits", labels=dataset.labels)],
        training=Training(
            dataset=dataset.name,
            train_rows=len(dataset.train_x),
            test_rows=len(dataset.test_x),
            epochs=epochs,
            seed=seed,
            duration_s=round(comparison.sketched.duration_s, 2),
            metrics={"test_accuracy": comparison.sketched.test_accuracy},
            dense_twin_metrics={"test_accuracy": comparison.dense.test_accuracy},
        ),
        preprocessing=dataset.preprocessing,
    )


def _table(comparison: Comparison) -> Table:
    dense, sketched = comparison.dense, comparison.sketched
    count = ParameterCount(dense=dense.learnable, learnable=sketched.learnable, fixed=sketched.fixed)
    table = Table()
    for heading in ("", "dense", "sketched", "change"):
        table.add_column(heading, justify="left" if not heading else "right")
    table.add_row(
        "learnable parameters",
        f"{count.dense:,}",
        f"{count.learnable:,}",
        f"{-count.learnable_reduction_percent:+.1f}%",
    )
    table.add_row("fixed parameters", "0", f"{count.fixed:,}", "")
    table.add_row(
        "stored parameters", f"{count.dense:,}", f"{count.stored:,}", f"{-count.stored_reduction_percent:+.1f}%"
    )
    for label, ours, theirs in (
        ("bytes in memory", sketched.bytes_in_memory, dense.bytes_in_memory),
        ("multiply-adds a row", sketched.multiply_adds_per_row, dense.multiply_adds_per_row),
    ):
        table.add_row(label, f"{theirs:,}", f"{ours:,}", f"{100 * (ours / theirs - 1):+.1f}%")
    table.add_row(
        "time of one row, torch",
        f"{dense.latency_us:.0f} µs",
        f"{sketched.latency_us:.0f} µs",
        f"{100 * (sketched.latency_us / dense.latency_us - 1):+.0f}%",
    )
    table.add_row(
        "test accuracy",
        f"{dense.test_accuracy:.2%}",
        f"{sketched.test_accuracy:.2%}",
        f"{100 * (sketched.test_accuracy - dense.test_accuracy):+.2f} points",
    )
    table.add_row(
        "training time",
        f"{dense.duration_s:.1f} s",
        f"{sketched.duration_s:.1f} s",
        f"{100 * (sketched.duration_s / dense.duration_s - 1):+.0f}%",
    )
    return table
