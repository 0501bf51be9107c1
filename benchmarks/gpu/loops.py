"""Models for the benchmark of the server on a GPU, and their runs in one process beside bare loops of onnxruntime."""

from __future__ import annotations

import json
import shutil
import statistics
import time
import warnings
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch
from torch import nn

from app.runtime.cuda.cudart import DEVICE_TO_HOST, HOST_TO_DEVICE
from app.runtime.device import CUDA, CudaOptions, find_device
from app.runtime.model import OnnxModel
from panther.export import export_onnx
from panther.nn import SKLinear

ROOT = Path(__file__).parents[2]
WIDTH, LAYERS, TERMS, RANK = 4096, 8, 2, 64
ROWS = (1, 16, 256)
PARITY = 1e-4


def mlp(layers):
    generator = torch.Generator().manual_seed(0)
    modules = []
    for _ in range(layers):
        modules += [SKLinear(WIDTH, WIDTH, TERMS, RANK, generator=generator), nn.ReLU()]
    return nn.Sequential(*modules[:-1]).eval()


def make_models(folder, *, cpu, layers):
    """The model folder, and the MLP itself."""
    made = folder / "models"
    shutil.copytree(ROOT / "models", made)
    network = mlp(layers)
    x = torch.randn(8, WIDTH, generator=torch.Generator().manual_seed(1))
    target = "cpu" if cpu else "cuda"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, precision in (("mlp", "float32"), ("mlp16", "float16")):
            if cpu and precision == "float16":
                continue
            path = made / name / "1" / "model.onnx"
            path.parent.mkdir(parents=True)
            export_onnx(network, x, path, name=name, target=target, batch_sizes=ROWS, precision=precision)
        dense = nn.Sequential(*[part.to_linear() if isinstance(part, SKLinear) else part for part in network])
        path = folder / "dense.onnx"
        program = torch.onnx.export(
            dense, (x,), input_names=["x"], output_names=["y"],
            dynamic_shapes=({0: torch.export.Dim("batch")},), dynamo=True, verbose=False,
        )  # fmt: skip
        program.save(path, external_data=False)
    return made, network, path


def newest(folder, name):
    return max((folder / name).glob("[1-9]*"), key=lambda path: int(path.name)) / "model.onnx"


def exact(network, x):
    """The MLP in float64."""
    place = "cuda" if torch.cuda.is_available() else "cpu"
    with torch.no_grad():
        return network.double().to(place)(torch.from_numpy(x).double().to(place)).cpu().numpy()


def times_us(runs, seconds):
    """Median and mean of one call of each in µs, by the host's clock; they take turns of 20 calls."""
    times = {name: [] for name in runs}
    for run in runs.values():
        for _ in range(5):
            run()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(next(iter(times.values()))) < 100:
        for name, run in runs.items():
            for _ in range(20):
                began = time.perf_counter_ns()
                run()
                times[name].append(time.perf_counter_ns() - began)
    return tuple(
        {name: round(middle(found) / 1000, 2) for name, found in times.items()}
        for middle in (statistics.median, statistics.mean)
    )


def bare_session(path, *, graph=False, stream=None):
    options = ort.SessionOptions()
    options.log_severity_level = 3
    cuda = {"use_tf32": "0", "enable_cuda_graph": "1" if graph else "0"}
    if stream is not None:
        cuda["user_compute_stream"] = str(stream)
    return ort.InferenceSession(str(path), options, providers=[(CUDA, cuda)])


def bare_loops(path, x, columns, runtime):
    """Calls of onnxruntime alone.

    From host arrays, from bound device buffers, by its own CUDA graph, and by that graph with copies from and to pinned
    memory around it.
    """
    host = bare_session(path)
    (source,), (target,) = host.get_inputs(), host.get_outputs()
    keep = []

    def bound(session):
        binding = session.io_binding()
        a = ort.OrtValue.ortvalue_from_numpy(x, "cuda", 0)
        b = ort.OrtValue.ortvalue_from_shape_and_type([len(x), columns], np.float32, "cuda", 0)
        binding.bind_ortvalue_input(source.name, a)
        binding.bind_ortvalue_output(target.name, b)
        keep.append((session, binding, a, b))

        def run():
            session.run_with_iobinding(binding)
            binding.synchronize_outputs()

        return run, a, b

    stream = runtime.make_stream()
    with_copies, a, b = bound(bare_session(path, graph=True, stream=stream))
    places = runtime.pinned_memory(x.nbytes), runtime.pinned_memory(len(x) * columns * 4)

    def copied():
        runtime.copy(a.data_ptr(), places[0], x.nbytes, HOST_TO_DEVICE, stream)
        with_copies()
        runtime.copy(places[1], b.data_ptr(), len(x) * columns * 4, DEVICE_TO_HOST, stream)
        runtime.synchronize(stream)

    return {
        "host_arrays": lambda: host.run(None, {source.name: x}),
        "bound": bound(bare_session(path))[0],
        "bound_graph": bound(bare_session(path, graph=True))[0],
        "bound_graph_copies": copied,
    }, keep


def in_process(made, dense, device, seconds):
    """One run of each kind, in turn; ``ours`` is what the server calls, from host arrays to host arrays."""
    cells = []
    for name, path, columns in (
        ("digits", newest(made, "digits"), 10),
        ("mlp", newest(made, "mlp"), WIDTH),
        ("dense twin of mlp", dense, WIDTH),
    ):
        model = OnnxModel(name, "1", path, device, 1)
        model.prepare(max(ROWS))
        source = model.inputs[0]
        for rows in ROWS:
            x = np.random.default_rng(rows).random((rows, source.shape[1]), np.float32)
            feeds = {source.name: x}
            expected = bare_session(path).run(None, feeds)[0]
            error = np.abs(model.run(feeds, model.output_names).arrays[0] - expected).max() / np.abs(expected).max()
            if not error <= PARITY:
                raise SystemExit(f"{name}, {rows} rows: off by {error:.2g}; nothing was timed")
            runs, keep = bare_loops(path, x, columns, device.runtime)
            spent = []

            def ours(model=model, feeds=feeds, spent=spent):
                began = time.perf_counter_ns()
                run = model.run(feeds, model.output_names)
                spent.append(time.perf_counter_ns() - began - run.input_ns - run.output_ns)

            runs["ours"] = ours
            found, means = times_us(runs, seconds)
            found["ours_without_copies"] = round(statistics.median(spent) / 1000, 2)
            means["ours_without_copies"] = round(statistics.mean(spent) / 1000, 2)
            del keep, runs
            cells.append(
                {"model": name, "rows": rows, "mode": model.cuda.mode, "reason": model.cuda.reason,
                 "padded_to": model.cuda.padded_to, "relative_error": float(error), "median_us": found,
                 "mean_us": means}
            )  # fmt: skip
            print(json.dumps(cells[-1]), flush=True)
        del model
    return cells


def precisions(made, network, seconds):
    """Errors against float64, and times, of float32, TF32 and float16."""
    x = np.random.default_rng(5).standard_normal((256, WIDTH)).astype(np.float32)
    expected = exact(network, x)
    report = {}
    runs = {}
    for name, path, tf32 in (
        ("float32", newest(made, "mlp"), False),
        ("tf32", newest(made, "mlp"), True),
        ("float16", newest(made, "mlp16"), False),
    ):
        model = OnnxModel(name, "1", path, find_device("cuda", CudaOptions(tf32=tf32)), 1)
        model.prepare(256)
        feeds = {model.inputs[0].name: x}
        y = model.run(feeds, model.output_names).arrays[0].astype(np.float64)
        report[name] = {
            "max_relative_error": float(np.abs(y - expected).max() / np.abs(expected).max()),
            "mean_relative_error": float(np.abs(y - expected).mean() / np.abs(expected).mean()),
            "reported_by_the_server": model.cuda.tf32_max_relative_error,
            "mode": model.cuda.mode,
            "file_bytes": model.file_bytes,
        }
        for rows in ROWS:
            part = {model.inputs[0].name: x[:rows]}
            runs[name, rows] = lambda model=model, part=part: model.run(part, model.output_names)
    for rows in ROWS:
        found, _ = times_us({name: run for (name, size), run in runs.items() if size == rows}, seconds)
        for name, value in found.items():
            report[name].setdefault("median_us", {})[rows] = value
    print(json.dumps(report), flush=True)
    return report
