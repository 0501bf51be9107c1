"""SKLinear on a CUDA device against batched products and nn.Linear: forward, and forward with backward.

    python benchmarks/gpu/train.py --commit "$(git rev-parse HEAD)" --output benchmarks/results/gpu_train.json

All sides answer the same rows first, outputs and gradients held to float64, and are then timed in turn: called one by
one, as CUDA graphs, and, under bfloat16, by torch.compile: one layer, and eight in a row, since a call of what is
compiled costs the host some hundred microseconds whatever it holds. The parameters are float32; bfloat16 and float16
are by autocast, on activations of that type. Then the layer that is bound by memory, 8192² L1 k16 with parameters in
bfloat16, against a copy of x on the device.

The host of a virtual machine may be slow for seconds, so all cells are visited several times, minutes apart; a figure
is the median over the rounds of all visits.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import multiprocessing
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from bench_layer import geometric_mean
from provenance import about
from torch import Tensor, nn

from panther.nn import SKLinear
from panther.nn.kernels import cuda, devices

CELLS = ((4096, 4, 128), (4096, 2, 64), (8192, 1, 16), (3200, 2, 64))
BATCHES = (32, 512, 8192)
# computed in: allowed relative error against float64, in the Frobenius norm, of outputs and of gradients
MODES = {"float32": 1e-5, "tf32": 2e-3, "bfloat16": 1.5e-2, "float16": 2e-3}
COMPILED = "bfloat16"
# layers in a row of each way
LAYERS = {"called": 1, "graph": 1, "compiled": 1, "compiled, 8 layers": 8}
PASSES = ("forward", "forward+backward")
SIDES = ("ours", "batched", "dense")
# of each visit
ROUNDS = 7
TURN_S = 0.006
COPY_BATCHES = (8192, 32768)
Run = Callable[[], object]


def batched_products(layer: SKLinear, x: Tensor) -> Tensor:
    """Term by term, as the public package computes: 2 x (bmm, bmm), mean over the terms, add."""
    rows = x.expand(layer.num_terms, *x.shape)
    first = torch.bmm(torch.bmm(rows, layer.S1s), layer.U1s).mean(0)
    second = torch.bmm(torch.bmm(rows, layer.U2s), layer.S2s).mean(0)
    y = (first + second) * 0.5
    return y + layer.bias.to(y.dtype)


class Cell:
    """The sides of some layers in a row and a number of rows, in one mode."""

    def __init__(self, width: int, num_terms: int, low_rank: int, batch: int, mode: str, layers: int = 1) -> None:
        generator = torch.Generator(device="cuda").manual_seed(0)
        self.layers = [
            SKLinear(width, width, num_terms, low_rank, device="cuda", generator=generator) for _ in range(layers)
        ]
        self.mode = mode
        self.autocast = getattr(torch, mode) if mode.endswith("float16") else None
        dtype = self.autocast or torch.float32
        self.x, self.grad = (torch.randn(batch, width, device="cuda", generator=generator).to(dtype) for _ in range(2))
        self.x.requires_grad_()
        ours, dense = nn.Sequential(*self.layers), nn.Sequential(*(layer.to_linear() for layer in self.layers))
        self.functions = {
            "ours": (ours[0] if layers == 1 else ours, [*ours.parameters()]),
            "batched": (self.batched, [*ours.parameters()]),
            "dense": (dense[0] if layers == 1 else dense, [*dense.parameters()]),
        }

    def batched(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = batched_products(layer, x)
        return x

    @contextlib.contextmanager
    def precision(self) -> Iterator[None]:
        torch.backends.cuda.matmul.fp32_precision = "tf32" if self.mode == "tf32" else "ieee"
        yield
        torch.backends.cuda.matmul.fp32_precision = "ieee"

    def results(self, side: str, *, compiled: bool = False) -> list[Tensor]:
        """The output and the gradients of x and the parameters."""
        function, parameters = self.functions[side]
        function = torch.compile(function, dynamic=False) if compiled else function
        with torch.autocast("cuda", dtype=self.autocast, enabled=self.autocast is not None):
            y = function(self.x)
        return [y.detach(), *torch.autograd.grad(y, [self.x, *parameters], self.grad)]

    def run(self, side: str, direction: str, *, compiled: bool = False) -> Run:
        function, parameters = self.functions[side]
        function = torch.compile(function, dynamic=False) if compiled else function

        def forward() -> Tensor:
            with torch.no_grad(), torch.autocast("cuda", dtype=self.autocast, enabled=self.autocast is not None):
                return function(self.x)

        def forward_backward() -> object:
            with torch.autocast("cuda", dtype=self.autocast, enabled=self.autocast is not None):
                y = function(self.x)
            return torch.autograd.grad(y, [self.x, *parameters], self.grad)

        return forward if direction == "forward" else forward_backward

    def prove_parity(self, sides: dict[str, list[Tensor]]) -> dict[str, float]:
        """The largest relative error of each side, over the output and the gradients that the sides share."""
        x = self.x.detach().double().requires_grad_()
        y, learning = x, [x]
        for layer in self.layers:
            S1s, U1s, U2s, S2s, bias = (
                t.detach().double() for t in (layer.S1s, layer.U1s, layer.U2s, layer.S2s, layer.bias)
            )
            learning += [t.requires_grad_() for t in (S1s, S2s, bias)]
            total = sum(y @ S1s[i] @ U1s[i] + y @ U2s[i] @ S2s[i] for i in range(layer.num_terms))
            y = total / (2 * layer.num_terms) + bias
        expected = [y.detach(), *torch.autograd.grad(y, learning, self.grad.double())]
        errors = {}
        for side, found in sides.items():
            shared = found[:2] if side == "dense" else found
            pairs = zip(shared, expected[: len(shared)], strict=True)
            errors[side] = max(((a.double() - b).norm() / b.norm()).item() for a, b in pairs)
            # the errors of layers in a row add up as squares
            if not errors[side] <= MODES[self.mode] * len(self.layers) ** 0.5:
                raise SystemExit(
                    f"{side} is off by {errors[side]:.2g} in {self.mode} for {self.layers[0]} at {len(x)} rows"
                )
        return errors


def as_graph(run: Run) -> Run:
    """The launches of a call, captured."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = run()

    def replay() -> object:
        graph.replay()
        return kept

    return replay


def measure(runs: dict[str, Run]) -> dict[str, list[float]]:
    """Time the sides in turn, in an order that changes: the seconds a call, of each round.

    A turn is as many calls, one after the other, as take TURN_S, until the device is done with all.
    """
    repeats = {}
    for name, run in runs.items():
        for _ in range(3):
            run()
        repeats[name] = max(1, int(TURN_S / timed(run, 2)))
    times: dict[str, list[float]] = {name: [] for name in runs}
    order = list(runs)
    for _ in range(ROUNDS):
        for name in order:
            times[name].append(timed(runs[name], repeats[name]))
        order = order[1:] + order[:1]
    return times


def median_us(times: list[float], digits: int = 1) -> float:
    return round(statistics.median(times) * 1e6, digits)


def timed(run: Run, repeats: int) -> float:
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(repeats):
        run()
    torch.cuda.synchronize()
    return (time.perf_counter() - start) / repeats


class Measured:
    """What was measured of each cell so far.

    Attributes:
        times: seconds a call of each side, of each round.
        errors: the largest of each side.
    """

    def __init__(self) -> None:
        self.times: dict[tuple[object, ...], dict[str, list[float]]] = {}
        self.errors: dict[tuple[object, ...], dict[str, float]] = {}

    def visit(self, shape: tuple[int, int, int], batch: int, mode: str, ways: tuple[str, ...]) -> None:
        """Measure a cell once more; at the first visit, prove before that all sides answer the same."""
        cell = Cell(*shape, batch, mode, LAYERS[ways[0]])
        with cell.precision():
            for way in ways:
                compiled = way.startswith("compiled")
                if (*shape, batch, mode, way) not in self.errors:
                    results = {side: cell.results(side, compiled=compiled) for side in SIDES}
                    self.errors[*shape, batch, mode, way] = cell.prove_parity(results)
                for direction in PASSES[1:] if compiled else PASSES:
                    key = (*shape, batch, mode, way, direction)
                    runs = {side: cell.run(side, direction, compiled=compiled) for side in SIDES}
                    found = measure({side: as_graph(run) for side, run in runs.items()} if way == "graph" else runs)
                    times = self.times.setdefault(key, {side: [] for side in SIDES})
                    for side in SIDES:
                        times[side] += found[side]
                    print_row(self.row(key))

    def row(self, key: tuple[object, ...]) -> dict:
        width, num_terms, low_rank, batch, mode, way, direction = key
        count = SKLinear(width, width, num_terms, low_rank, device="meta").parameter_count()
        median = {side: median_us(times) for side, times in self.times[key].items()}
        return {
            "features": width,
            "num_terms": num_terms,
            "low_rank": low_rank,
            "stored_over_dense": round(count.stored / count.dense, 4),
            "batch": batch,
            "mode": mode,
            "way": way,
            "pass": direction,
            "median_us": median,
            "batched_over_ours": round(median["batched"] / median["ours"], 3),
            "dense_over_ours": round(median["dense"] / median["ours"], 3),
            "max_relative_error": {side: float(f"{error:.2g}") for side, error in self.errors[key[:-1]].items()},
        }

    def rows(self) -> list[dict]:
        return [self.row(key) for key in self.times]


def print_row(row: dict) -> None:
    head = f"{row['features']}² L{row['num_terms']} k{row['low_rank']} x {row['batch']} {row['mode']}"
    us, direction = row["median_us"], "fwd" if row["pass"] == "forward" else "f+b"
    print(
        f"{head:<32}{row['way']:<19}{direction} ours {us['ours']:>9.1f} batched {row['batched_over_ours']:>5.2f}x "
        f" dense {row['dense_over_ours']:>6.2f}x",
        flush=True,
    )


def bench_copy(batch: int) -> dict:
    """8192² L1 k16, parameters in bfloat16, forward, against a copy of x: microseconds a call, of ten in a row."""
    layer = SKLinear(8192, 8192, 1, 16, device="cuda", dtype=torch.bfloat16)
    x = torch.randn(batch, 8192, device="cuda", dtype=torch.bfloat16)
    twin = torch.empty_like(x)
    with torch.no_grad():
        expected = x[-256:].double() @ layer.dense_weight().double().t() + layer.bias.double()
        error = ((layer(x)[-256:].double() - expected).norm() / expected.norm()).item()
        if not error <= MODES["bfloat16"]:
            raise SystemExit(f"ours is off by {error:.2g} at {batch} rows")

        def ten(run: Run) -> Run:
            def runs() -> None:
                for _ in range(10):
                    run()

            return runs

        def products() -> Tensor:
            with cuda.backend("products"):
                return layer(x)

        # the copy by a kernel call: a graph uses the copy engine, which is slower
        runs = {
            "copy": ten(lambda: twin.copy_(x)),
            "ours": as_graph(ten(lambda: layer(x))),
            "ours_called": ten(lambda: layer(x)),
            "products": as_graph(ten(products)),
        }
        median = {side: median_us([seconds / 10 for seconds in times], 2) for side, times in measure(runs).items()}
    row = {
        "features": 8192,
        "num_terms": 1,
        "low_rank": 16,
        "batch": batch,
        "median_us": median,
        "copy_over_ours": round(median["copy"] / median["ours"], 3),
        "max_relative_error": float(f"{error:.2g}"),
    }
    print(json.dumps(row), flush=True)
    return row


def compile_ahead(width: int, num_terms: int, low_rank: int, batch: int, layers: int) -> None:
    """Fill the caches on disk with what a cell compiles, so that the run itself only reads them."""
    cell = Cell(width, num_terms, low_rank, batch, COMPILED, layers)
    with cell.precision(), contextlib.suppress(Exception):
        for side in SIDES:
            cell.results(side)
            cell.results(side, compiled=True)


def all_ahead(cells: list[tuple[int, ...]]) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=compile_ahead, args=cell) for cell in cells]
    for process in processes:
        process.start()
    for process in processes:
        process.join()


def summary(rows: list[dict]) -> dict:
    """Geometric means and the cells that fall short."""
    groups: dict[str, list[dict]] = {"all": rows}
    for row in rows:
        groups.setdefault(f"{row['mode']} {row['way']} {row['pass']}", []).append(row)
    means = {
        name: {
            "batched_over_ours": round(geometric_mean([row["batched_over_ours"] for row in group]), 3),
            "smallest_batched_over_ours": min(row["batched_over_ours"] for row in group),
            "dense_over_ours": round(geometric_mean([row["dense_over_ours"] for row in group]), 3),
        }
        for name, group in groups.items()
    }
    names = ("features", "num_terms", "low_rank", "batch", "mode", "way", "pass")

    def slower_than(side: str, among: list[dict]) -> list[dict]:
        ratio = f"{side}_over_ours"
        return [{name: row[name] for name in (*names, ratio)} for row in among if row[ratio] < 1]

    asked = [row for row in rows if row["stored_over_dense"] <= 0.25 and row["batch"] >= 512]
    return {
        "geometric_means": means,
        "slower_than_batched": slower_than("batched", rows),
        "slower_than_dense_at_512_rows_and_more_with_a_quarter_of_its_parameters": slower_than("dense", asked),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--commit", default="unknown", help="of the checkout, for the record")
    parser.add_argument("--output", type=Path, required=True, help="JSON to write")
    parser.add_argument(
        "--batches", type=int, nargs="+", default=BATCHES, help="of the cells; all of them when not given"
    )
    parser.add_argument("--visits", type=int, default=3, help="of each cell; 3 when not given")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    # a process of one cell compiles kernels for it at once; here all cells share a process
    cuda.FIRST_KINDS = sys.maxsize
    started = time.perf_counter()
    kernels = devices.triton_kernels()
    measured = Measured()
    result = {
        **about("gpu_train", arguments.commit, triton=kernels.triton.__version__ if kernels is not None else None),
        "rounds": arguments.visits * ROUNDS,
        "copy": [bench_copy(batch) for batch in COPY_BATCHES],
    }
    cells = [(*cell, batch) for batch in arguments.batches for cell in CELLS]
    parts = ((("called", "graph"), tuple(MODES)), (("compiled",), (COMPILED,)), (("compiled, 8 layers",), (COMPILED,)))
    for visit in range(arguments.visits):
        for ways, modes in parts:
            if ways == ("compiled",) and not visit:
                for layers in (1, 8):
                    all_ahead([(*cell, layers) for cell in cells])
            for *shape, batch in cells:
                for mode in modes:
                    measured.visit(tuple(shape), batch, mode, ways)
                    gc.collect()
                    torch.cuda.empty_cache()
                    torch.compiler.reset()
            # write after each part, so that an interrupted run keeps its results
            arguments.output.parent.mkdir(parents=True, exist_ok=True)
            rows = measured.rows()
            arguments.output.write_text(json.dumps({**result, "summary": summary(rows), "rows": rows}, indent=1) + "\n")
            print(f"visit {visit + 1}: {', '.join(ways)} after {time.perf_counter() - started:.0f} s", flush=True)
    print(json.dumps(summary(rows), indent=1))


if __name__ == "__main__":
    main()
