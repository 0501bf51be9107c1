"""`panther train`: data, both networks, the table, the export."""

from __future__ import annotations

from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from panther.counting import ParameterCount
from panther.export import Column, ExportReport, Input, Output, Training, export_onnx
from panther.export.publish.repository import check_name
from panther.runs.processes import check_device, process_group
from panther.train.compare import Comparison, RunOptions, train_side_by_side
from panther.train.data import Dataset, load_digits, load_npz
from panther.train.state import EpochResult


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
    options: RunOptions | None = None,
    unit: str | None = None,
) -> tuple[Comparison, ExportReport | None]:
    """Train both networks, print their costs and scores, export the sketched one.

    Under ``torchrun`` the processes train together; the first one alone prints and exports, and the others' report is
    None.
    The unit is that of the targets of a regression.

    Raises:
        ValueError: the name or the data is wrong, a unit is given and the data is no regression, the device is not
            available, or checkpoints are of another run.
        ExportError: the file did not compute what the network does, or could not be written.
    """
    check_name(name)
    options = options if options is not None else RunOptions()
    check_device(options.device)
    if threads is not None:
        torch.set_num_threads(threads)
    with process_group() as rank:
        if rank > 0:
            console = Console(quiet=True)
        dataset = load_digits(seed=seed) if data is None else load_npz(data, seed=seed)
        output = _output(dataset, unit)
        console.print(
            f"{dataset.name}: {len(dataset.train_x):,} rows to train on, {len(dataset.test_x):,} held out, "
            f"{dataset.train_x.shape[1]} features, {_described(dataset)}",
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
                run=options,
            )
        if rank > 0:
            return comparison, None
    report = _export(comparison, dataset, output, to=to, name=name, epochs=epochs, seed=seed)
    console.print(_table(comparison, unit or "unit of y"))
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


def _export(
    comparison: Comparison, dataset: Dataset, output: Output, *, to: Path, name: str, epochs: int, seed: int
) -> ExportReport:
    return export_onnx(
        comparison.sketched.model,
        dataset.test_x,
        to,
        name=name,
        inputs=[_input(dataset)],
        outputs=[output],
        training=Training(
            dataset=dataset.name,
            train_rows=len(dataset.train_x),
            test_rows=len(dataset.test_x),
            epochs=epochs,
            seed=seed,
            duration_s=round(comparison.sketched.duration_s, 2),
            metrics={f"test_{name}": value for name, value in comparison.sketched.metrics.items()},
            dense_twin_metrics={f"test_{name}": value for name, value in comparison.dense.metrics.items()},
        ),
        preprocessing=dataset.preprocessing,
    )


def _input(dataset: Dataset) -> Input:
    description = f"rows of {dataset.train_x.shape[1]} features"
    if not dataset.columns:
        return Input("x", description)
    # shortest float32 text: 5.1 and not 5.099999904632568
    sample = tuple(float(str(value)) for value in dataset.test_x[0].numpy())
    return Input("x", description, tuple(map(Column, dataset.columns)), (sample,))


def _described(dataset: Dataset) -> str:
    if dataset.task == "regression":
        return f"{dataset.outputs} numbers to predict" if dataset.outputs > 1 else "a number to predict"
    return (
        f"{len(dataset.labels)} {'classes' if dataset.task == 'classification' else 'labels, any number of them a row'}"
    )


def _output(dataset: Dataset, unit: str | None) -> Output:
    if dataset.task == "regression":
        text = "one number a target" + ("" if unit else ", in the unit of y")
        return Output("values", description=text, kind="regression", unit=unit)
    if unit is not None:
        raise ValueError(f"unit ({unit!r}) needs targets of a regression; {dataset.name} has {_described(dataset)}")
    if dataset.task == "multilabel":
        text = "one logit a label; the label is predicted where it is above 0"
        return Output("logits", description=text, kind="multilabel", labels=dataset.labels)
    return Output("logits", description="one score a class", kind="logits", labels=dataset.labels)


def _table(comparison: Comparison, unit: str) -> Table:
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
    for name, found in sketched.metrics.items():
        beside = dense.metrics[name]
        if name in ("r2", "rmse", "mae"):
            label = "test R²" if name == "r2" else f"test {name.upper()}, {unit}"
            table.add_row(label, f"{beside:.4g}", f"{found:.4g}", f"{found - beside:+.4g}")
        else:
            label = "test " + name.replace("_", " ").replace("f1", "F1")
            table.add_row(label, f"{beside:.2%}", f"{found:.2%}", f"{100 * (found - beside):+.2f} points")
    table.add_row(
        "training time",
        f"{dense.duration_s:.1f} s",
        f"{sketched.duration_s:.1f} s",
        f"{100 * (sketched.duration_s / dense.duration_s - 1):+.0f}%",
    )
    return table
