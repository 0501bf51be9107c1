"""Mixed traffic against a real server, every answer compared with the model run directly; see docs/reliability.md.

    make soak MINUTES=20

Protocols, sizes and models are mixed; clients give up halfway; versions come and go; bad requests and bursts lie in
between. Prints a summary in JSON, and exits with 1 where an answer was wrong, a status was not expected, or memory or
file descriptors grew. All of it stays on the loopback interface, and it stops by itself.
"""

import argparse
import asyncio
import gzip
import io
import json
import os
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import httpx
import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper
from serving.machine import about  # of benchmarks/, by PYTHONPATH

ROOT = Path(__file__).parents[3]

POOL = 4096
SIZES = (1, 1, 1, 2, 5, 32, 100, 300)
GROWTH = 1.05


class Reference:
    """What the models answer, by onnxruntime alone."""

    def __init__(self, folder):
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        rng = np.random.default_rng(0)
        self.x = rng.random((POOL, 784), np.float32)
        digits = folder / "digits" / "1" / "model.onnx"
        session = ort.InferenceSession(str(digits), options, providers=["CPUExecutionProvider"])
        self.logits = session.run(None, {session.get_inputs()[0].name: self.x})[0]

    def rows(self, chance):
        """A random run of rows: inputs and what they give."""
        count = chance.choice(SIZES)
        at = chance.randrange(POOL - count)
        return self.x[at : at + count], self.logits[at : at + count]


def swing(version):
    """A model whose answer tells its version: every number is the mean of the row plus the version."""
    nodes = [helper.make_node("MatMul", ["x", "W"], ["m"]), helper.make_node("Add", ["m", "b"], ["y"])]
    graph = helper.make_graph(
        nodes,
        "swing",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 784])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2])],
        [
            numpy_helper.from_array(np.full((784, 2), 1 / 784, np.float32), "W"),
            numpy_helper.from_array(np.full(2, version, np.float32), "b"),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def put(folder, version):
    """Publish a version of ``swing`` by one rename."""
    hidden = folder / f".swing-{version}"
    hidden.mkdir()
    onnx.save(swing(version), hidden / "model.onnx")
    (folder / "swing").mkdir(exist_ok=True)
    hidden.rename(folder / "swing" / str(version))


class Record:
    """What happened."""

    def __init__(self):
        self.answers = Counter()
        self.wrong = []
        self.unexpected = []

    def count(self, kind, status, expected, text=""):
        self.answers[f"{kind} {status}"] += 1
        if status not in expected:
            self.unexpected.append(f"{kind}: {status}: {text[:300]}")

    def compare(self, kind, found, wanted):
        if found.shape != wanted.shape or not np.allclose(found, wanted, rtol=2e-3, atol=2e-3):
            self.wrong.append(f"{kind}: shape {found.shape} for {wanted.shape}")


def oip(x, *, binary):
    item = {"name": "x", "shape": list(x.shape), "datatype": "FP32"}
    if not binary:
        return json.dumps({"inputs": [{**item, "data": x.reshape(-1).tolist()}]}).encode(), {}
    item["parameters"] = {"binary_data_size": x.nbytes}
    head = json.dumps({"inputs": [item], "parameters": {"binary_data_output": True}}).encode()
    return head + x.tobytes(), {"Inference-Header-Content-Length": str(len(head))}


def read_oip(answer):
    length = answer.headers.get("Inference-Header-Content-Length")
    if length is None:
        item = answer.json()["outputs"][0]
        return np.reshape(item["data"], item["shape"])
    item = json.loads(answer.content[: int(length)])["outputs"][0]
    return np.frombuffer(answer.content[int(length) :], np.float32).reshape(item["shape"])


def npy(x):
    buffer = io.BytesIO()
    np.save(buffer, x)
    return buffer.getvalue()


OCTETS, JSON = {"Content-Type": "application/octet-stream"}, {"Content-Type": "application/json"}
KINDS = {
    "json": lambda x: ("/models/digits/predict", json.dumps({"inputs": x.tolist()}).encode(), JSON),
    "json gzip": lambda x: (
        "/models/digits/predict",
        gzip.compress(json.dumps({"inputs": x.tolist()}).encode(), 1),
        {**JSON, "Content-Encoding": "gzip"},
    ),
    "npy": lambda x: ("/models/digits/predict", npy(x), {"Content-Type": "application/x-npy"}),
    "octets": lambda x: ("/models/digits/predict", x.tobytes(), OCTETS),
    "v2 json": lambda x: ("/v2/models/digits/infer", *oip(x, binary=False)),
    "v2 binary": lambda x: ("/v2/models/digits/infer", *oip(x, binary=True)),
}
BAD = [
    ("/predict", b'{"inputs": [[1, 2]]}', JSON, (400, 404)),
    ("/models/digits/predict", b'{"inputs": [[1, 2]]}', JSON, (400,)),
    ("/models/digits/predict", b'{"inputs": ' + b"[" * 100_000, JSON, (400,)),
    ("/models/digits/predict", b"\xff\xfe", JSON, (400,)),
    ("/models/digits/predict", b"", JSON, (400,)),
    ("/models/digits/predict", b"1234567", OCTETS, (400,)),
    ("/models/digits/predict", b"<xml/>", {"Content-Type": "application/xml"}, (415,)),
    ("/models/digits/predict", b"nonsense", {**JSON, "Content-Encoding": "gzip"}, (400,)),
    ("/models/digits/predict", gzip.compress(b"0" * 80_000_000, 1), {**JSON, "Content-Encoding": "gzip"}, (413,)),
    ("/models/nobody/predict", b"{}", JSON, (404,)),
    ("/models/digits/versions/99/predict", b"{}", JSON, (404,)),
    ("/v2/models/digits/infer", b'{"inputs": []}', JSON, (400,)),
    ("/v2/models/digits/infer", b"xx", {"Inference-Header-Content-Length": "99"}, (400,)),
    ("/v2/repository/models/nobody/load", b"{}", JSON, (404,)),
    ("/nowhere", b"{}", JSON, (404,)),
]


async def ask_digits(client, reference, record, chance, until, busy):
    while time.monotonic() < until:
        kind = chance.choice(list(KINDS))
        x, wanted = reference.rows(chance)
        path, content, headers = KINDS[kind](x)
        bursts = busy.is_set()
        answer = await client.post(path, content=content, headers=headers)
        # A burst may fill the queue, and be over when the refusal arrives; otherwise nothing may be refused.
        expected = (200, 503) if bursts or busy.is_set() else (200,)
        record.count(kind, answer.status_code, expected, answer.text if answer.status_code != 200 else "")
        if answer.status_code != 200:
            await asyncio.sleep(0.05)
            continue
        if kind.startswith("v2"):
            record.compare(kind, read_oip(answer), wanted)
        else:
            record.compare(kind, np.array(answer.json()["outputs"]["logits"]), wanted)


async def ask_swing(client, reference, record, chance, until, busy):
    while time.monotonic() < until:
        x, _ = reference.rows(chance)
        path, content, headers = "/models/swing/predict", x.tobytes(), OCTETS
        bursts = busy.is_set()
        answer = await client.post(path, content=content, headers=headers)
        expected = (200, 503) if bursts or busy.is_set() else (200,)
        record.count("swing", answer.status_code, expected, answer.text if answer.status_code != 200 else "")
        if answer.status_code == 200:
            document = answer.json()
            wanted = np.repeat(x.mean(axis=1, keepdims=True) + int(document["version"]), 2, axis=1)
            record.compare("swing", np.array(document["outputs"]["y"]), wanted)
        await asyncio.sleep(0.002)


async def ask_badly(client, record, chance, until, busy):
    while time.monotonic() < until:
        path, content, headers, expected = chance.choice(BAD)
        bursts = busy.is_set()
        answer = await client.post(path, content=content, headers=headers)
        expected = (*expected, 503) if bursts or busy.is_set() else expected
        record.count("bad", answer.status_code, expected, f"{path} {content[:30]!r}: {answer.text}")
        if "error" not in answer.json() or "Traceback" in answer.text:
            record.unexpected.append(f"bad: {answer.text[:300]}")
        await asyncio.sleep(0.01)


async def give_up(port, reference, record, chance, until):
    """Clients that go away: with half a head, half a body, or before the answer; compressed or not."""
    while time.monotonic() < until:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        x = reference.x[: chance.choice((1, 300, 2000))]
        path, body, headers = KINDS[chance.choice(("octets", "json", "json gzip"))](x)
        lines = [f"POST {path} HTTP/1.1", "Host: localhost", *(f"{name}: {value}" for name, value in headers.items())]
        head = "\r\n".join([*lines, ""]).encode()
        data = head + b"Content-Length: %d\r\n\r\n" % len(body) + body
        writer.write(data[: chance.choice((20, len(data) // 2, len(data)))])
        await asyncio.sleep(chance.choice((0, 0.001, 0.02)))
        writer.transport.abort()
        record.answers["gave up"] += 1
        del reader
        await asyncio.sleep(0.02)


async def burst(client, reference, record, chance, until, busy):
    """Far more at once than can be done."""
    while time.monotonic() < until:
        await asyncio.sleep(chance.uniform(3, 8))
        x, wanted = reference.x[:64], reference.logits[:64]
        content = json.dumps({"inputs": x.tolist()}).encode()
        busy.set()

        async def one(content=content, wanted=wanted):
            answer = await client.post("/models/digits/predict", content=content, headers=JSON)
            record.count("burst", answer.status_code, (200, 503), answer.text if answer.status_code != 200 else "")
            if answer.status_code == 503 and "retry-after" not in answer.headers:
                record.unexpected.append("burst: 503 without Retry-After")
            if answer.status_code == 200:
                record.compare("burst", np.array(answer.json()["outputs"]["logits"]), wanted)

        await asyncio.gather(*(one() for _ in range(200)))
        await asyncio.sleep(0.5)
        busy.clear()


async def reload(client, folder, record, chance, until):
    """Versions come and go; the same file is loaded anew."""
    newest = 1
    while time.monotonic() < until:
        await asyncio.sleep(chance.uniform(0.5, 2))
        name = chance.choice(("digits", "swing"))
        if name == "swing":
            newest += 1
            await asyncio.to_thread(put, folder, newest)
        answer = await client.post(f"/v2/repository/models/{name}/load", content=b"{}")
        record.count("load", answer.status_code, (200,), answer.text)
        if name == "swing" and newest > 3:
            shutil.rmtree(folder / "swing" / str(newest - 3))


async def look(client, record, pid, samples, until):
    """What an operator's tools ask, and what the processes take."""
    while time.monotonic() < until:
        for path in ("/health/live", "/health/ready", "/stats", "/metrics", "/v2/models/digits/stats"):
            answer = await client.get(path)
            record.count("look", answer.status_code, (200,), answer.text)
        samples.append((time.monotonic(), *usage(pid)))
        await asyncio.sleep(1)


def usage(pid):
    """Resident bytes and open files of a process and all below it; none of one that ended, as trial loads do."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        resident = 1024 * sum(map(int, re.findall(r"VmRSS:\s+(\d+)", status)))  # a zombie has no such line
        files = len(list(Path(f"/proc/{pid}/fd").iterdir()))
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except (FileNotFoundError, ProcessLookupError):
        return 0, 0
    below = [usage(int(child)) for child in children]
    return resident + sum(item[0] for item in below), files + sum(item[1] for item in below)


async def soak(port, pid, folder, seconds, seed):
    reference, record, samples = Reference(folder), Record(), []
    until = time.monotonic() + seconds
    busy = asyncio.Event()
    limits = httpx.Limits(max_connections=400, max_keepalive_connections=100)
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60, limits=limits) as client:
        parts = [ask_digits(client, reference, record, random.Random(seed + n), until, busy) for n in range(6)]
        parts += [
            ask_swing(client, reference, record, random.Random(seed + 10), until, busy),
            ask_badly(client, record, random.Random(seed + 11), until, busy),
            give_up(port, reference, record, random.Random(seed + 12), until),
            burst(client, reference, record, random.Random(seed + 13), until, busy),
            reload(client, folder, record, random.Random(seed + 14), until),
            look(client, record, pid, samples, until),
        ]
        await asyncio.gather(*parts)
    await asyncio.sleep(1)
    return record, samples, usage(pid)


def flat(samples):
    """The median of the last quarter over that of the second, for memory and for files."""
    quarter = len(samples) // 4
    middle, last = samples[quarter : 2 * quarter], samples[3 * quarter :]
    return [statistics.median(item[i] for item in last) / statistics.median(item[i] for item in middle) for i in (1, 2)]


def start(folder, workers, log):
    arguments = [
        *("--port", "0", "--model-dir", str(folder), "--num-threads", "1", "--workers", str(workers)),
        *("--device", "cpu", "--model-control", "explicit", "--max-queue-ms", "200"),
        *("--max-queue-bytes", str(32 * 2**20)),
    ]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PANTHER_")}
    with log.open("w") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "app", *arguments], cwd=ROOT, stderr=stream, env=clean, start_new_session=True
        )
    end = time.monotonic() + 60
    while log.read_text().count("ready: ") < workers:
        if process.poll() is not None or time.monotonic() > end:
            raise RuntimeError(log.read_text())
        time.sleep(0.05)
    return process, int(re.search(r"listening on http://127.0.0.1:(\d+)", log.read_text())[1])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "models"
        shutil.copytree(ROOT / "models", folder)
        put(folder, 1)
        log = Path(name) / "log"
        process, port = start(folder, arguments.workers, log)
        try:
            record, samples, end = asyncio.run(soak(port, process.pid, folder, 60 * arguments.minutes, arguments.seed))
            process.send_signal(signal.SIGTERM)
            status = process.wait(60)
        except BaseException:
            sys.stderr.write(log.read_text()[-10_000:])
            raise
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
        text = log.read_text()
        tracebacks = text.count("Traceback")
        ended = len(re.findall(r"worker \d+ (?:died|is killed)|process ended", text))
    memory, files = flat(samples) if len(samples) >= 40 else (None, None)
    answers = dict(sorted(record.answers.items()))
    result = {
        "benchmark": "soak",
        **about(),
        "settings": {"minutes": arguments.minutes, "workers": arguments.workers, "seed": arguments.seed},
        "answers": answers,
        "requests": sum(answers.values()),
        "wrong answers": len(record.wrong),
        "unexpected statuses": len(record.unexpected),
        "tracebacks in the log": tracebacks,
        "workers or decoding processes that ended": ended,
        "exit status": status,
        "resident_mib": {"first": round(samples[0][1] / 2**20, 1), "last": round(end[0] / 2**20, 1)},
        "memory, last quarter over second": memory and round(memory, 3),
        "open files": {"first": samples[0][2], "last": end[1]},
        "examples": (record.wrong + record.unexpected)[:20],
    }
    print(json.dumps(result, indent=1))
    if arguments.output is not None:
        arguments.output.write_text(json.dumps(result, indent=1) + "\n")
    good = not (record.wrong or record.unexpected or tracebacks or ended or status)
    good &= memory is None or (memory <= GROWTH and files <= GROWTH)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
