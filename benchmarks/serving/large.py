"""A model of gigabytes with external weights: time and memory of its load."""

import json
import time
import urllib.request
from pathlib import Path

import numpy as np
from serving import sides

WIDTH = 5000  # a layer has 100 MB of weights


def write(folder, layers):
    """Write tanh(x · W) so many times over, with random weights in a file beside the model."""
    from onnx import TensorProto, helper

    rng = np.random.default_rng(0)
    nodes, weights, size = [], [], 4 * WIDTH * WIDTH
    with (folder / "weights.bin").open("wb") as file:
        for index in range(layers):
            file.write((rng.standard_normal((WIDTH, WIDTH), np.float32) * np.float32(WIDTH**-0.5)).data)
            weight = TensorProto(name=f"W{index}", data_type=TensorProto.FLOAT, dims=[WIDTH, WIDTH])
            weight.data_location = TensorProto.EXTERNAL
            for key, value in (("location", "weights.bin"), ("offset", index * size), ("length", size)):
                weight.external_data.add(key=key, value=str(value))
            weights.append(weight)
            nodes.append(helper.make_node("MatMul", [f"x{index}", f"W{index}"], [f"h{index}"]))
            nodes.append(helper.make_node("Tanh", [f"h{index}"], [f"x{index + 1}"]))
    ends = [helper.make_tensor_value_info(f"x{index}", TensorProto.FLOAT, ["n", WIDTH]) for index in (0, layers)]
    model = helper.make_model(
        helper.make_graph(nodes, "large", ends[:1], ends[1:], weights), opset_imports=[helper.make_opsetid("", 17)]
    )
    model.ir_version = 8
    (folder / "model.onnx").write_bytes(model.SerializeToString())


def resident_bytes(process):
    """Resident memory of a process and of its descendants, by number."""
    parents, found = {}, {}
    for folder in Path("/proc").glob("[1-9]*"):
        try:
            lines = (folder / "status").read_text().splitlines()
        except OSError:  # it ended meanwhile
            continue
        fields = dict(line.split(":", 1) for line in lines if ":" in line)
        parents[int(folder.name)] = int(fields["PPid"])
        found[int(folder.name)] = 1024 * int(fields.get("VmRSS", "0").split()[0])
    family = {process}
    for _ in range(4):  # generations
        family |= {number for number, parent in parents.items() if parent in family}
    return {number: found[number] for number in family if number in found}


def expected(folder, layers, x):
    weights = np.memmap(folder / "weights.bin", np.float32, "r", shape=(layers, WIDTH, WIDTH))
    for weight in weights:
        x = np.tanh(x @ weight)
    return x


def available_bytes():
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))


def measure(root, gigabytes, core, log):
    """Make, load and ask a model of so many gigabytes; returns what it took."""
    layers = round(10 * gigabytes)
    folder = root / "large" / "1"
    folder.mkdir(parents=True)
    write(folder, layers)
    side = sides.ours(root)
    peak = {"server": 0, "with_the_trial_load": 0}

    def look():
        now = resident_bytes(side.process.pid)
        for name, size in (("server", now[side.process.pid]), ("with_the_trial_load", sum(now.values()))):
            peak[name] = max(peak[name], size)

    def wait():
        look()
        time.sleep(0.2)

    side.meanwhile = wait
    side.start_limit_s = 600
    side.start(folder, core, log)
    try:
        x = np.random.default_rng(1).standard_normal((2, WIDTH)).astype(np.float32)
        body = json.dumps({"inputs": x.tolist()}).encode()
        with urllib.request.urlopen(
            urllib.request.Request(side.url("/predict"), body, sides.JSON), timeout=120
        ) as answer:
            (found,) = json.load(answer)["outputs"].values()
        with urllib.request.urlopen(side.url("/stats"), timeout=60) as answer:
            (report,) = json.load(answer)["models"]
        look()
        settled = resident_bytes(side.process.pid)[side.process.pid]
    finally:
        side.stop()
    error = float(np.abs(np.array(found) - expected(folder, layers, x)).max())
    return {
        "file_bytes": report["bytes"]["file_bytes"],
        "ready_s": round(side.ready_s, 1),
        "load_s": round(report["runtime"]["load_duration_s"], 1),
        "batched": report["runtime"]["batched"],
        "max_absolute_error": error,
        "peak_bytes": peak,
        "resident_bytes": settled,
    }
