"""Benchmark of one worker with large bodies on one and two GPUs: requests per second, and time of the worker's core.

    python benchmarks/gpu/scale.py --commit "$(git rev-parse HEAD)" --output benchmarks/results/gpu_scale.json

Requires a GPU, onnxruntime-gpu, onnx, torch, and the server's packages; with one GPU it skips the sides for two. It
takes about five minutes; ``--quick`` takes two and is not a measurement. ``--cpu`` is a dry run on the CPU.
``--old FOLDER`` adds the server of another checkout as a side.

Requests and responses have 64 rows of 4096 floats (1 MiB) in the Open Inference Protocol with binary tensors. Models:
*light* adds a number and shows the worker's limit; *mlp* has 8 sketched layers of 4096 (rank 128, with rectifiers);
*heavy* has 16 dense layers with the same weights, so the GPU is the bottleneck.

The responses of every side are checked before the timing, and the last response of each client process after it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

os.environ["ORT_DISABLE_TELEMETRY"] = "1"
sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper
from serve import CLIENTS, ROOT, Side, machine, prove, ways
from serving.sides import read_oip

from app.runtime.cuda.cudart import CudaError, load_runtime

HERE = Path(__file__).parent
FLOAT = TensorProto.FLOAT
ROWS, WIDTH, RANK = 64, 4096, 128
PARITY = 1e-4
WANTED = 2.5 * 925
"""Goal for *mlp*: requests per second of one worker on one H200."""


def write_model(path, nodes, constants):
    """A model from x to y, both with rows of 4096 floats."""
    ends = [helper.make_tensor_value_info(name, FLOAT, ["rows", WIDTH]) for name in ("x", "y")]
    tensors = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], tensors)
    path.mkdir(parents=True)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path / "model.onnx")


def chain(layers, products):
    """Nodes of the layers: the products, and a rectifier after each but the last."""
    nodes, name = [], "x"
    for layer in range(layers):
        for index, weight in enumerate(products):
            out = f"h{layer}_{index}"
            nodes.append(helper.make_node("MatMul", [name, weight.format(layer=layer)], [out]))
            name = out
        if layer < layers - 1:
            nodes.append(helper.make_node("Relu", [name], [f"r{layer}"]))
            name = f"r{layer}"
    nodes[-1].output[0] = "y"
    return nodes


def make_models(folder):
    """Write the models; the weights preserve the scale of the activations."""
    rng = np.random.default_rng(0)

    def weights(rows, columns, gain):
        return (rng.standard_normal((rows, columns)) * (gain / rows) ** 0.5).astype(np.float32)

    write_model(folder / "light" / "1", [helper.make_node("Add", ["x", "c"], ["y"])], {"c": np.ones(1, np.float32)})
    factors = {}
    for layer in range(8):
        factors[f"A{layer}"], factors[f"B{layer}"] = weights(WIDTH, RANK, 2), weights(RANK, WIDTH, 1)
    write_model(folder / "mlp" / "1", chain(8, ["A{layer}", "B{layer}"]), factors)
    write_model(folder / "heavy" / "1", chain(16, ["W"]), {"W": weights(WIDTH, WIDTH, 2)})
    return folder


def place(made, folder, placement):
    """A model folder with the same files and the placement in each model's panther.toml."""
    for model in sorted(made.iterdir()):
        (folder / model.name).mkdir(parents=True)
        (folder / model.name / "1").symlink_to(model / "1", target_is_directory=True)
        if placement:
            lines = [f"{key} = {json.dumps(value)}" for key, value in placement.items()]
            (folder / model.name / "panther.toml").write_text("\n".join(["[placement]", *lines, ""]))
    return folder


class Server(Side):
    """A server of some checkout with its own model folder."""

    def __init__(self, name, checkout, models, arguments):
        command = [sys.executable, "-m", "app", "--port", "{port}", "--model-dir", str(models), "--num-threads", "1",
                   "--log-level", "info", *arguments]  # fmt: skip
        self.process = None
        super().__init__(name, ["env", "-C", str(checkout), *command], "/health/ready")

    def processor_s(self):
        """Seconds of the event loop's thread and of the whole process, in user and kernel mode."""
        found = []
        for path in (f"/proc/{self.process.pid}/task/{self.process.pid}/stat", f"/proc/{self.process.pid}/stat"):
            fields = Path(path).read_text().rpartition(")")[2].split()
            found += [int(fields[11]), int(fields[12])]
        return np.array(found) / os.sysconf("SC_CLK_TCK")


def drive(side, way, expected, seconds, folder):
    """One run of all clients against a side."""
    path, headers, body, _ = way
    (folder / "body").write_bytes(body)
    processes = max(1, min(CLIENTS // 4, (os.cpu_count() or 2) // 2))
    counts = [CLIENTS // processes + (index < CLIENTS % processes) for index in range(processes)]
    begins_s = time.time() + 1.0
    started = []
    for index, connections in enumerate(counts):
        given = {"port": side.port, "path": path, "headers": headers, "body": str(folder / "body"),
                 "connections": connections, "begins_s": begins_s, "seconds": seconds,
                 "last": str(folder / f"last{index}")}  # fmt: skip
        command = [sys.executable, str(HERE / "clients.py"), json.dumps(given)]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
    time.sleep(max(0.0, begins_s - time.time()))
    before = side.processor_s()
    time.sleep(seconds)
    spent = side.processor_s() - before
    results = [json.loads(process.communicate(timeout=120)[0]) for process in started]
    errors = [error for result in results for error in result["errors"]]
    if errors:
        raise RuntimeError(f"{side.name}: {len(errors)} connections failed: {errors[0]}")
    for index in range(processes):
        last = (folder / f"last{index}").read_bytes()
        check(side, np.frombuffer(last[-expected.nbytes :], np.float32), expected)
    times = sorted(us for result in results for us in result["times_us"])
    loop_user, loop_system, user, system = (1e6 * spent / len(times)).round(1).tolist()
    return {
        "rate": round(len(times) / seconds, 1),
        "p50_us": round(times[len(times) // 2]),
        "p99_us": round(times[len(times) * 99 // 100]),
        "loop_user_us": loop_user,
        "loop_system_us": loop_system,
        "process_us": round(user + system, 1),
    }


def check(side, found, expected):
    error = np.abs(found.reshape(expected.shape) - expected).max() / np.abs(expected).max()
    if not error <= PARITY:
        raise SystemExit(f"{side.name}: an answer under load is off by {error:.2g}")


def sides(made, folder, arguments, count):
    """The compared servers: name, and how each is made."""
    device = ["--device", "cpu" if arguments.cpu else "cuda"]
    one, both = ("cpu", ["cpu", "cpu"]) if arguments.cpu else ([0], [0, 1])
    wanted = [
        ("1 GPU", None, device),
        ("1 GPU, 2 instances", {"devices": one, "instances": 2}, device),
    ]
    if count > 1:
        wanted += [
            ("2 GPUs", {"devices": both}, device),
            ("2 GPUs, 2 instances each", {"devices": both, "instances": 2}, device),
        ]
    found = []
    if arguments.old is not None:
        models = place(made, folder / "old", None)
        found.append(Server("before, 1 GPU", arguments.old.resolve(), models, device))
    for number, (name, placement, options) in enumerate(wanted):
        found.append(Server(name, ROOT, place(made, folder / f"side{number}", placement), options))
    return found


def runs_of(side, name):
    """Runs of each instance, if the server reports them."""
    (found,) = json.loads(side.get(f"/models/{name}/stats")[1])["models"]
    return [item["runs"] for item in found["runtime"].get("instances", ())]


def measure(made, folder, arguments, count, log):
    started = sides(made, folder, arguments, count)
    cells = []
    try:
        for side in started:  # one at a time: a load measures batch sizes on the GPU
            side.start(log)
            print(f"{side.name}: ready after {side.ready_s} s", flush=True)
        for name in arguments.models.split(","):
            session = ort.InferenceSession(str(made / name / "1" / "model.onnx"), providers=["CPUExecutionProvider"])
            x = np.random.default_rng(1).standard_normal((ROWS, WIDTH)).astype(np.float32)
            (expected,) = session.run(None, {"x": x})
            way = ways(name, "x", x)["ours"]
            for side in started:
                prove(side, (*way[:3], read_oip), expected)
            runs = {side.name: [] for side in started}
            before = {side.name: runs_of(side, name) for side in started}
            for side in started:
                drive(side, way, expected, 1, folder)  # the first requests allocate buffers and pools
            for _ in range(arguments.rounds):
                for side in started:
                    runs[side.name].append(drive(side, way, expected, arguments.seconds, folder))
            cell = {"model": name, "rows": ROWS, "clients": CLIENTS, "body_bytes": len(way[2])}
            cell["sides"] = {
                side: {key: round(statistics.median(run[key] for run in found), 1) for key in found[0]}
                for side, found in runs.items()
            }
            for side in started:
                ran = zip(runs_of(side, name), before[side.name], strict=True)
                cell["sides"][side.name]["runs_by_instance"] = [after - first for after, first in ran]
            cells.append(cell)
            print(json.dumps(cell), flush=True)
    finally:
        for side in started:
            if side.process is not None:
                side.stop()
    return cells


def verdicts(cells):
    """Goals on an H200."""
    by_model = {cell["model"]: {side: item["rate"] for side, item in cell["sides"].items()} for cell in cells}
    found = []
    for name, rates in by_model.items():
        on_one = {side: rate for side, rate in rates.items() if side.startswith("1 GPU")}
        on_two = {side: rate for side, rate in rates.items() if side.startswith("2 GPUs")}
        best = max(on_one.values())
        if name == "mlp":
            found.append(("mlp: requests a second of one worker on one GPU, as it comes", rates["1 GPU"], WANTED))
            found.append(("mlp: requests a second of one worker on one GPU, best", best, WANTED))
        if "before, 1 GPU" in rates:
            found.append(
                (f"{name}: one worker on one GPU, times before", rates["1 GPU"] / rates["before, 1 GPU"], None)
            )
        if on_two:
            limit = 1.8 if name == "heavy" else None
            found.append((f"{name}: one worker on two GPUs over one GPU, best", max(on_two.values()) / best, limit))
    return [
        {"what": what, "value": round(value, 2), "rule": None if limit is None else f">= {limit:g}",
         "reached": None if limit is None else bool(value >= limit)}
        for what, value, limit in found
    ]  # fmt: skip


def devices(arguments):
    """CUDA devices that this process sees."""
    if arguments.cpu:
        return 2
    try:
        if hasattr(ort, "preload_dlls"):
            ort.preload_dlls()
        return load_runtime().device_count()
    except CudaError as error:
        raise SystemExit(f"no CUDA device: {error}") from None


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--commit", default="unknown", help="of the checkout, for the record")
    parser.add_argument("--output", type=Path, required=True, help="JSON to write")
    parser.add_argument("--seconds", type=int, default=3, help="of each run")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--models", default="light,mlp,heavy")
    parser.add_argument("--old", type=Path, help="folder of another checkout, to be compared")
    parser.add_argument("--old-commit", default="unknown", help="of that checkout, for the record")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--cpu", action="store_true", help="instances on the CPU; a dry run")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.seconds, arguments.rounds = 1, 1
    count = devices(arguments)
    result = {
        "benchmark": "gpu_scale",
        "commit": arguments.commit,
        "taken_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {**machine(), "gpus": 0 if arguments.cpu else count},
        "versions": {"python": sys.version.split()[0], "onnxruntime": ort.__version__,
                     **{name: version(name) for name in ("numpy", "fastapi", "uvicorn")}},
        "settings": {"rounds": arguments.rounds, "seconds": arguments.seconds, "clients": CLIENTS, "rows": ROWS,
                     "width": WIDTH, "before": arguments.old_commit if arguments.old else None},
    }  # fmt: skip
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name, (arguments.output.parent / "servers.log").open("w") as log:
        made = make_models(Path(name) / "made")
        result["cells"] = measure(made, Path(name), arguments, count, log)
    result["must_reach"] = verdicts(result["cells"])
    arguments.output.write_text(json.dumps(result, indent=1) + "\n")
    for item in result["must_reach"]:
        word = {True: "reached", False: "MISSED ", None: "told   "}[item["reached"]]
        print(f"{word}  {item['what']}: {item['value']} ({item['rule']})")


if __name__ == "__main__":
    main()
