"""The tables of docs/gpu.md: the server and the layer on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from reporting.results import load, provenance, table

NAMES = {"digits": "digits", "mlp": "MLP", "dense twin of mlp": "its dense twin"}
MODES = ("float32", "tf32", "bfloat16", "float16")


def gpu_serving_source() -> str:
    """Where the figures of serving come from."""
    return _block("gpu_serving", lambda result: provenance("gpu_serving", result))


def gpu_train_source() -> str:
    """Where the figures of training come from."""
    return _block("gpu_train", lambda result: provenance("gpu_train", result))


def gpu_loops() -> str:
    """Bare loops beside what the server calls."""
    ways = ("host_arrays", "bound", "bound_graph", "bound_graph_copies", "ours")

    def make(result: dict[str, Any]) -> str:
        rows = (
            (NAMES[cell["model"]], cell["rows"], *(_us(cell["median_us"][way]) for way in ways))
            for cell in result["loops"]
        )
        head = ("model", "rows", "arrays", "bound", "bound + graph", "… + copies", "ours, arrays to arrays")
        return table(head, rows)

    return _block("gpu_serving", make)


def gpu_inside() -> str:
    """What a run takes in the server, over the bare loop."""

    def make(result: dict[str, Any]) -> str:
        bare = {(cell["model"], cell["rows"]): cell["mean_us"]["bound_graph"] for cell in result["loops"]}
        rows = (
            (
                NAMES[cell["model"]],
                cell["rows"],
                *(f"{cell[f'{part}_mean_us']:.1f}" for part in ("copy_in", "model", "copy_out")),
                f"{cell['model_mean_us'] / bare[cell['model'], cell['rows']]:.2f}",
            )
            for cell in result["http"]["inside"]
        )
        return table(("model", "rows", "copied in", "model", "copied out", "model over bound + graph"), rows)

    return _block("gpu_serving", make)


def gpu_throughput() -> str:
    """Requests per second beside naive services."""

    def make(result: dict[str, Any]) -> str:
        rows = []
        for cell in result["http"]["throughput"]:
            rates = [f"{cell['sides'][side]['rate']:,.0f}" for side in ("ours", "naive json", "naive binary")]
            times, p99 = cell["times"]["naive binary"], cell["sides"]["ours"]["p99_us"] / 1000
            rows.append((NAMES[cell["model"]], cell["rows"], *rates, f"{times:.1f}", f"{p99:.1f}"))
        head = (
            "model", "rows a request", "ours", "naive, lists", "naive, raw bytes", "times raw bytes", "our p99, ms"
        )  # fmt: skip
        return table(head, rows)

    return _block("gpu_serving", make)


def gpu_precisions() -> str:
    """Errors and times of the types to compute in."""

    def make(result: dict[str, Any]) -> str:
        rows = []
        for name, found in result["precisions"].items():
            told = found["reported_by_the_server"]
            largest = f"{found['max_relative_error']:.1e}" + ("" if told is None else f" (the server says {told:.1e})")
            times = (f"{us:.0f} µs" for us in found["median_us"].values())
            rows.append((name, largest, f"{found['mean_relative_error']:.1e}", *times))
        sizes = (
            f"{rows} row" if rows == "1" else f"{rows} rows"
            for rows in next(iter(result["precisions"].values()))["median_us"]
        )
        return table(("", "largest error", "mean error", *sizes), rows)

    return _block("gpu_serving", make)


def gpu_twins() -> str:
    """The models over their dense twins."""

    def make(result: dict[str, Any]) -> str:
        rows = (
            (
                NAMES[name],
                item["rows"],
                _us(item["model_median_us"]),
                _us(item["dense_twin_median_us"]),
                f"{item['ratio']:.2f}",
            )
            for name, batches in result["http"]["dense_twins"].items()
            for item in batches
        )
        return table(("model", "rows", "µs", "µs of its dense twin", "model over twin"), rows)

    return _block("gpu_serving", make)


def gpu_scale_source() -> str:
    """Where the figures of large bodies and of several GPUs come from."""
    return _block("gpu_scale", lambda result: provenance("gpu_scale", result))


def gpu_scale() -> str:
    """One worker with large bodies, on one GPU and on two."""

    def make(result: dict[str, Any]) -> str:
        rows = (
            (
                cell["model"],
                name,
                _us(side["rate"]),
                f"{side['p50_us'] / 1000:.1f}",
                f"{side['p99_us'] / 1000:.1f}",
                _us(side["loop_user_us"] + side["loop_system_us"]),
                " + ".join(f"{runs:,}" for runs in side["runs_by_instance"]),
            )
            for cell in result["cells"]
            for name, side in cell["sides"].items()
        )
        head = (
            "model",
            "worker",
            "requests a second",
            "p50, ms",
            "p99, ms",
            "µs of the loop's core",
            "runs by instance",
        )
        return table(head, rows)

    return _block("gpu_scale", make)


def gpu_train_graph() -> str:
    """Forward and backward as a CUDA graph."""
    return _block("gpu_train", lambda result: _training(result, "graph", "forward+backward"))


def gpu_train_called() -> str:
    """Forward and backward, each operation called from Python."""
    return _block("gpu_train", lambda result: _training(result, "called", "forward+backward"))


def gpu_train_forward() -> str:
    """Forward alone, called from Python."""
    return _block("gpu_train", lambda result: _training(result, "called", "forward"))


def gpu_train_compiled() -> str:
    """Forward and backward under torch.compile."""
    return _block("gpu_train", lambda result: _training(result, "compiled", "forward+backward"))


def gpu_train_compiled_model() -> str:
    """The same of eight layers in a row."""
    return _block("gpu_train", lambda result: _training(result, "compiled, 8 layers", "forward+backward"))


def gpu_train_means() -> str:
    """Geometric means over the cells."""

    def make(result: dict[str, Any]) -> str:
        rows = (
            (
                name,
                f"{found['batched_over_ours']:.2f}",
                f"{found['smallest_batched_over_ours']:.2f}",
                f"{found['dense_over_ours']:.2f}",
            )
            for name, found in result["summary"]["geometric_means"].items()
        )
        return table(("cells", "times batched products", "the smallest", "times nn.Linear"), rows)

    return _block("gpu_train", make)


def gpu_train_copy() -> str:
    """The layer that memory binds, against a copy."""

    def make(result: dict[str, Any]) -> str:
        rows = []
        for cell in result["copy"]:
            us = cell["median_us"]
            rows.append(
                (
                    cell["batch"],
                    f"{us['copy']:.1f} µs",
                    f"{us['ours']:.1f} µs",
                    f"{100 * cell['copy_over_ours']:.1f} %",
                    f"{us['ours_called']:.1f} µs",
                    f"{100 * us['copy'] / us['ours_called']:.1f} %",
                    f"{us['products']:.1f} µs",
                )
            )
        head = (
            "rows", "copy", "kernels in a graph", "of the copy's speed", "kernels called", "of the copy's speed",
            "products in a graph",
        )  # fmt: skip
        return table(head, rows)

    return _block("gpu_train", make)


def _training(result: dict[str, Any], way: str, direction: str) -> str:
    """One line for each layer and number of rows, one column for each mode: µs · times batched · times dense."""
    cells: dict[tuple[int, ...], dict[str, str]] = {}
    for row in result["rows"]:
        if row["way"] == way and row["pass"] == direction:
            key = (row["features"], row["num_terms"], row["low_rank"], row["batch"])
            us, batched, dense = row["median_us"]["ours"], row["batched_over_ours"], row["dense_over_ours"]
            cells.setdefault(key, {})[row["mode"]] = f"{us:,.0f} · {batched:.1f} · {dense:.1f}"
            if min(batched, dense) < 1:  # one decimal does not show on which side of 1 it lies
                cells[key][row["mode"]] = f"{us:,.0f} · {batched:.2f} · {dense:.2f}"
    modes = [mode for mode in MODES if any(mode in cell for cell in cells.values())]
    order = sorted(cells, key=lambda key: (-key[0], -key[1] * key[2], key[3]))
    rows = (
        (f"{features}² L{terms} k{rank}", batch, *(cells[features, terms, rank, batch][mode] for mode in modes))
        for features, terms, rank, batch in order
    )
    return table(("layer", "rows", *modes), rows)


def _us(value: float) -> str:
    return f"{value:,.0f}"


def _block(name: str, make: Callable[[dict[str, Any]], str]) -> str:
    result = load(name)
    return "Not measured yet." if result is None else make(result)


BLOCKS = (
    gpu_serving_source,
    gpu_train_source,
    gpu_loops,
    gpu_inside,
    gpu_throughput,
    gpu_precisions,
    gpu_twins,
    gpu_scale_source,
    gpu_scale,
    gpu_train_graph,
    gpu_train_called,
    gpu_train_forward,
    gpu_train_compiled,
    gpu_train_compiled_model,
    gpu_train_means,
    gpu_train_copy,
)
