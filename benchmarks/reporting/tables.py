"""The tables of the documents, each made of one or two results. A block's name is its function's."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from reporting.accuracy import accuracy_bits, accuracy_digits, accuracy_table
from reporting.architectures import matrix
from reporting.attacks import fuzz, soak
from reporting.blocks import block, rules
from reporting.compress import BLOCKS as COMPRESS
from reporting.compress import proof_rows
from reporting.distributed import BLOCKS as DISTRIBUTED
from reporting.foreign import foreign, foreign_large, foreign_rules
from reporting.gpu import BLOCKS as GPU
from reporting.layers import latency_cpu, latency_gpu, shape_of, training_step
from reporting.pair import BLOCKS as PAIR
from reporting.pitch import pitch
from reporting.profile import profile
from reporting.results import load, percent, table

PEERS = ("triton", "mlserver", "litserve", "bentoml", "rayserve")


def proof() -> str:
    """The figures of the README and of the home page."""
    rows = []
    if savings := load("savings"):
        twin, file = savings["dense_twin_weight_bytes"], savings["file_bytes"]
        rows.append(
            (
                "the shipped digits model: file, and weights of the same network with dense layers",
                f"{file / 1e6:.2f} MB, {twin / 1e6:.2f} MB ({100 * (1 - file / twin):.0f}% less)",
            )
        )
        accuracy, dense = savings["test_accuracy"], savings["dense_twin_test_accuracy"]
        rows.append(
            ("… accuracy on held-out digits, and of the dense network", f"{percent(accuracy)}%, {percent(dense)}%")
        )
    if export := load("export"):
        (cell,) = [c for c in export["cells"] if shape_of(c) == (4096, 4096, 2, 64)] or [None]
        if cell is not None:
            first = cell["batches"][0]
            us = first["median_us"]
            rows.append(
                (
                    f"a 4096→4096 layer, L = 2, k = 64, onnxruntime, one CPU thread, batch {first['batch']}",
                    f"{us['ours']:,.0f} µs; dense {us['dense']:,.0f} µs ({us['dense'] / us['ours']:.0f}×)",
                )
            )
    if compress := load("compress"):
        rows += proof_rows(compress["sides"])
    if (conversion := load("conversion")) and "encoder" in conversion:
        half = next((row for row in conversion["encoder"]["mean_cosine"] if row["ratio"] == 0.5), None)
        if half is not None:
            rows.append(
                (
                    "the same encoder in low rank (`sketch_`), half of its linear parameters: cosine to the original",
                    f"{half['ours']:.3f}, distilled {half['ours_distilled']:.3f}; "
                    f"SVD whitened by the inputs {half['whitened_uniform']:.3f}",
                )
            )
    if compress and (bits := load("gpu_distill_bits")):
        # with the weight of hidden states that distill_ has by default
        (half,) = [row for row in bits["rows"] if (row["ratio"], row["hidden_weight"]) == (0.5, 1.0)]
        floats = compress["sides"]["float32"]["linear_bytes"]
        rows.append(
            (
                f"… and in {half['bits']} bits, distilled with {half['texts']:,} texts: MB of linear layers, cosine",
                f"{half['linear_bytes'] / 1e6:.1f} MB, {half['trained_in_bits']:.3f}; in float32 {floats / 1e6:.1f} MB",
            )
        )
    if serving := load("serving"):
        cell = "1 row JSON, 64 clients"
        ours, naive = serving["median"]["ours"][cell], serving["median"]["naive def"][cell]
        rows.append(
            (
                "the server on one core, 64 clients, one row of JSON each",
                f"{ours['rate']:,.0f} responses/s, median {ours['p50_us'] / 1000:.1f} ms; "
                f"a plain FastAPI handler {naive['rate']:,.0f} ({ours['rate'] / naive['rate']:.0f}×)",
            )
        )
    return table(("what", "measured"), rows, numbers=False)


def recipe() -> str:
    """What was changed in training, and what came of it."""

    def make(result: dict[str, Any]) -> str:
        rows = (
            (
                row["what"],
                percent(row["accuracy_mean"]),
                f"{percent(row['accuracy_min'])} to {percent(row['accuracy_max'])}",
            )
            for row in result["rows"]
        )
        return table(("changed", "accuracy %", "lowest to highest"), rows)

    return block("recipe", make)


def savings() -> str:
    def make(result: dict[str, Any]) -> str:
        rows = []
        for layer in [*result["layers"], {"name": "whole model", "parameters": result["totals"]}]:
            count = layer["parameters"]
            stored = count["learnable"] + count["fixed"]
            rows.append(
                (
                    layer["name"],
                    f"{count['dense']:,}",
                    f"{count['learnable']:,}",
                    f"{count['fixed']:,}",
                    f"{100 * (1 - count['learnable'] / count['dense']):.1f}%",
                    f"{100 * (1 - stored / count['dense']):.1f}%",
                )
            )
        return table(("layer", "dense", "learnable", "fixed", "saved: learnable", "saved: learnable and fixed"), rows)

    return block("savings", make)


def serving() -> str:
    def make(result: dict[str, Any]) -> str:
        cells = list(result["median"]["ours"])
        rows = (
            (
                name,
                *(
                    f"{row[cell]['rate']:,.0f} ({row[cell]['p99_us'] / 1000:.1f} ms)" if cell in row else ""
                    for cell in cells
                ),
            )
            for name, row in result["median"].items()
        )
        return table(("requests/s (99th percentile)", *cells), rows)

    return block("serving", make)


def serving_rules() -> str:
    return block("serving", rules)


def start() -> str:
    """Time to the first answer and resident memory, beside a naive service."""

    def make(result: dict[str, Any]) -> str:
        rows = [
            (name, f"{found['start_s']:.2f}", *(f"{found[key] / 2**20:.0f}" for key in ("resident", "resident_after")))
            for name, found in result["median"].items()
        ]
        after = f"after {result['settings']['requests']:,} requests"
        head = ("server", "start to the first answer, s", "resident then, MiB", after)
        return f"{table(head, rows)}\n\n{rules(result)}"

    return block("start", make)


def reload() -> str:
    """Answers while a model is exchanged every second."""

    def make(result: dict[str, Any]) -> str:
        settings, p50, p99 = result["settings"], result["p50_ms"], result["p99_ms"]
        rows = [
            (name, f"{p50[key]:.2f}", f"{p99[key]:.2f}")
            for name, key in (("left alone", "without"), (f"a reload every {settings['reload_every_s']:g} s", "with"))
        ]
        head = (f"{settings['rate_per_s']:,} requests/s", "median, ms", "99th percentile, ms")
        return f"{table(head, rows)}\n\n{rules(result)}"

    return block("reload", make)


def ablation() -> str:
    """What each trick of the request path is worth: the cost of the server without it, beside the whole server."""

    def make(result: dict[str, Any]) -> str:
        cells = result["median"]
        sides = list(next(iter(cells.values())))
        rows = []
        for side in sides:
            found = [cells[cell][side] for cell in cells]
            if side == "as shipped":
                shown = [f"{each['cpu_us']:,.0f} µs · {each['p50_us']:,.0f} µs" for each in found]
            else:
                shown = [f"{each['cpu_us_of_shipped']:.2f} · {each['p50_us_of_shipped']:.2f}" for each in found]
            rows.append((side, *shown))
        return table(("processor time a request · median latency", *cells), rows)

    return block("ablation", make)


def regression() -> str:
    """The request path of this version over that of the version before the layout, both asked in turn."""

    def make(result: dict[str, Any]) -> str:
        both = result["serving"]
        rows = [
            (
                cell,
                f"{both['old'][cell]['cpu_us']:,.0f}",
                f"{both['new'][cell]['cpu_us']:,.0f}",
                *(f"{found[key]:.3f}" for key in ("cpu_us", "p50_us", "rate")),
            )
            for cell, found in both["new over old"].items()
        ]
        head = ("cell", "old, µs of CPU a request", "new", "CPU", "p50", "rate: new over old")
        parts = [table(head, rows)]
        if "overload" in result:  # with --only, some parts were not measured
            loads = result["overload"]["new over old"]
            goodput, p99 = loads["goodput_of_peak"], loads["p99_ms"]
            parts.append(f"Overloaded, goodput is {goodput:.3f} and p99 {p99:.3f} of the old version's.")
        if "layers" in result:
            times = result["layers"]["new over old"].values()
            low, middle, high = min(times), statistics.median(times), max(times)
            parts.append(f"Layers take {low:.2f} to {high:.2f} of the old time, {middle:.2f} in the median.")
        return "\n\n".join(parts)

    return block("regression", make)


def overload() -> str:
    def make(result: dict[str, Any]) -> str:
        rows = []
        for side, found in result["costly model"].items():
            for load_name, load_found in found["loads"].items():
                rows.append(
                    (
                        side,
                        load_name.replace("x", "×"),
                        f"{found['peak_per_s']:,.0f}",
                        f"{100 * load_found['goodput_of_peak']:.0f}%",
                        f"{load_found['p99_ms']:,.0f}",
                        f"{load_found['probe']['max_ms']:,.0f}",
                    )
                )
        head = (
            "server",
            "load",
            "most it can do, 1/s",
            "good answers, of that",
            "99th percentile, ms",
            "slowest probe, ms",
        )
        return table(head, rows)

    return block("overload", make)


def overload_clients() -> str:
    """The shipped model, kept busy by more and more clients."""

    def make(result: dict[str, Any]) -> str:
        rows = (
            (
                clients.removesuffix(" clients"),
                f"{found['rate']:,.0f}",
                f"{found['p99_us'] / 1000:,.0f}",
                f"{found['probe']['max_ms']:,.0f}",
                f"{found['resident_mib']:.0f}",
            )
            for clients, found in result["shipped model"].items()
        )
        return table(("clients", "requests/s", "99th percentile, ms", "slowest probe, ms", "memory, MiB"), rows)

    return block("overload", make)


def peers() -> str:
    """The figures of the page that compares: one row a server, as far as it was installed."""

    def make(result: dict[str, Any]) -> str:
        cells = (
            "1 row JSON, 1 client",
            "1 row JSON, 64 clients",
            "32 rows JSON, 8 clients",
            "32 rows binary, 8 clients",
        )
        rows = [
            (name, *(f"{row[cell]['rate']:,.0f}" if cell in row else "" for cell in cells))
            for name, row in result["median"].items()
        ]
        why_not = {name: "not part of this run" for name in PEERS if name not in result["median"]} | result["left_out"]
        left = "".join(f"\n\nNot measured: {name} ({why})." for name, why in why_not.items())
        return table(("requests/s, one core", *cells), rows) + left

    return block("serving", make)


def grpc() -> str:
    """One row for each way of asking, and what had to be reached."""

    def make(result: dict[str, Any]) -> str:
        cells = list(next(iter(result["median"].values())))
        rows = [
            (name, *(f"{row[cell]['rate']:,.0f} ({row[cell]['cpu_us']:,.0f})" for cell in cells))
            for name, row in result["median"].items()
        ]
        left = "".join(f"\n\nNot measured: {name} ({why})." for name, why in result["left_out"].items())
        return table(("requests/s, one core (µs of it)", *cells), rows) + left + "\n\n" + rules(result)

    return block("grpc", make)


def public_way() -> str:
    """Starting from a trained weight: the public package's way beside ours."""

    def make(result: dict[str, Any]) -> str:
        rows = [
            (
                f"relative weight error, 784→512, L={row['num_terms']}, k={row['low_rank']}",
                f"{row['ours']:.3f}",
                f"{row['public_way']:.2f}",
            )
            for row in result["weights"]
        ]
        rows += [
            (
                f"digits accuracy at {100 * row['ratio']:.0f}% of the parameters",
                f"{row['ours']:.1f}%",
                f"{row['public_way']:.1f}%",
            )
            for row in result["digits"]
        ]
        return table(("", "ours", "the public package's way"), rows)

    return block("conversion", make)


def architectures() -> str:
    """What works with which architectures."""
    return block("architectures", matrix)


BLOCKS: dict[str, Callable[[], str]] = {
    function.__name__: function
    for function in (
        proof,
        accuracy_digits,
        accuracy_table,
        accuracy_bits,
        recipe,
        latency_cpu,
        latency_gpu,
        training_step,
        savings,
        serving,
        serving_rules,
        start,
        reload,
        foreign,
        foreign_rules,
        foreign_large,
        regression,
        ablation,
        overload,
        overload_clients,
        peers,
        grpc,
        public_way,
        architectures,
        soak,
        fuzz,
        pitch,
        profile,
        *COMPRESS,
        *GPU,
        *PAIR,
        *DISTRIBUTED,
    )
}
