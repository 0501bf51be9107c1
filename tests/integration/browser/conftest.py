"""The page in a real, headless Chromium; where there is none, these tests are skipped, and say so."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest
from helpers import build
from onnx import TensorProto, helper, numpy_helper

ROOT = Path(__file__).parents[3]
HERE = f"{Path(__file__).parent}{os.sep}"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-quic",
    "--no-first-run",
]
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}


def pytest_collection_modifyitems(items):
    for item in items:
        if str(item.path).startswith(HERE):
            item.add_marker(pytest.mark.browser)
            if CHROMIUM is None:
                item.add_marker(pytest.mark.skip(reason="no chromium; on Debian: apt-get install chromium"))


class Server:
    """``python -m app`` in a process of its own, that can be ended and started again on the same port."""

    def __init__(self, model_dir, *arguments):
        self.model_dir = model_dir
        self.arguments = arguments
        self.port = 0
        self.process = None

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def start(self, until="ready: "):
        with tempfile.TemporaryDirectory() as folder:
            log = Path(folder) / "log"
            command = [sys.executable, "-m", "app", "--port", str(self.port), "--model-dir", str(self.model_dir)]
            with log.open("w") as stream:
                self.process = subprocess.Popen(
                    [*command, "--num-threads", "1", *self.arguments],
                    cwd=ROOT,
                    stderr=stream,
                    env={**os.environ, "ORT_DISABLE_TELEMETRY": "1"},
                )
            deadline = time.monotonic() + 60
            while until not in log.read_text():
                assert time.monotonic() < deadline, log.read_text()
                assert self.process.poll() is None, log.read_text()
                time.sleep(0.02)
            self.port = int(re.search(r"listening on http://127.0.0.1:(\d+)", log.read_text())[1])

    def stop(self):
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            self.process.wait(60)

    def stats(self):
        return httpx.get(f"{self.url}/stats", timeout=60).json()


@contextmanager
def started(model_dir, *arguments, until="ready: "):
    server = Server(model_dir, *arguments)
    server.start(until)
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="session")
def start():
    """Start a server of a model folder."""
    return started


@pytest.fixture(scope="session")
def server():
    """The shipped models, served as they are by default."""
    with started(ROOT / "models") as server:
        yield server


COLUMNS = [
    {"name": "length", "unit": "cm", "description": "nose to tail"},
    {"name": "legs", "type": "integer"},
    {"name": "wings", "type": "boolean"},
    {"name": "colour", "type": "category", "categories": ["red", "green", "blue"]},
    {"name": "weight", "unit": "g"},
    {"name": "height"},
]
SAMPLES = [[1.5, 6, False, "green", 0.2, 3], [-2.5, 4, True, "blue", 0.3, 1]]
QUANTIZED = {"kind": "linear", "scheme": "int4-blocks", "smoothed": False, "block_size": 16}
FEW_BITS = [
    {**QUANTIZED, "name": "fc1.down", "in_features": 784, "out_features": 16, "weight_bytes": 7600},
    {**QUANTIZED, "name": "fc1.up", "in_features": 16, "out_features": 1024, "weight_bytes": 13312},
    {**QUANTIZED, "name": "fc2", "in_features": 1024, "out_features": 10, "weight_bytes": 5480},
]
CONVOLUTION = {
    "name": "conv",
    "shape": {"in_channels": 16, "out_channels": 32, "kernel_size": [3, 3], "stride": [1, 1], "groups": 1},
    "num_terms": 1,
    "low_rank": 4,
    "terms": "both",
    "bias": False,
    "sketch": "sign",
    "plan": "two_products",
    "reason": "fewer weights",
    "weight_bytes": 1000,
    # A 144 x 4 learned, B 4 x 32 fixed; A 16 x 4 fixed, B 36 x 32 learned
    "parameters": {"dense": 4608, "learnable": 1728, "fixed": 192},
    "multiply_adds_per_position": {"dense": 4608, "planned": 1920},
    "median_us": {},
}


def curve(budget, *points, **more):
    """A compression curve of (bytes, error, metric); the second is in the file, the last one only predicted."""
    found = [
        {"bytes": size, "error": error, "measured": number < len(points) - 1, "chosen": number == 1}
        | ({} if metric is None else {"metric": metric})
        for number, (size, error, metric) in enumerate(points)
    ]
    return {"budget": budget, "original_bytes": 20_000, "points": found, **more}


BY_ERROR = curve(
    "error of the outputs at most 0.1",
    *((1800, 0.4, None), (2400, 0.09, None), (3100, 0.12, None), (5200, 0.021, None), (20_000, 0.0, None)),
    (9000, 0.004, None),
)
BY_METRIC = curve(
    "metric at least 0.95",
    *((3000, 0.35, 0.91), (4100, 0.2, 0.955), (6000, 0.11, 0.968), (8000, 0.05, None)),
    original_metric=0.972,
)


def _graph(node, shapes, types=(TensorProto.FLOAT, TensorProto.FLOAT), constants=()):
    (given, put_out), nodes = shapes, node if isinstance(node, list) else [node]
    x = helper.make_tensor_value_info("x", types[0], given)
    y = helper.make_tensor_value_info("y", types[1], put_out)
    graph = helper.make_graph(nodes, "g", [x], [y], list(constants))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def _photos():
    weight = numpy_helper.from_array(np.eye(3, dtype=np.float32), "w")
    nodes = [
        helper.make_node("GlobalAveragePool", ["x"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("MatMul", ["f", "w"], ["y"]),
    ]
    return _graph(nodes, (["n", 3, 8, 8], ["n", 3]), constants=[weight])


@pytest.fixture(scope="session")
def repository(tmp_path_factory):
    """Models of every kind that the page treats in its own way, and one that is broken."""
    root = tmp_path_factory.mktemp("many")
    tiny = build.Tiny()
    inputs = [{"name": "x", "description": "measures", "columns": COLUMNS, "sample_rows": SAMPLES}]
    build.put(root, tiny.graph(), "animals", card=build.sketched_card(inputs=inputs, compression_curve=BY_ERROR))
    unit = [{"name": "logits", "kind": "regression", "unit": "mg/dL", "labels": ["low", "mean", "high"]}]
    build.put(root, tiny.graph(), "progress", card=build.sketched_card(outputs=unit))
    tags = [{"name": "logits", "kind": "multilabel", "labels": ["sea", "sky", "sun"]}]
    totals = {"convolutions": CONVOLUTION["parameters"], "sketched_layers": {"dense": 0, "learnable": 0, "fixed": 0}}
    totals["model"] = {"dense": 5000, "learnable": 2120, "fixed": 192}
    parts = {"layers": [], "quantized_layers": FEW_BITS, "convolutions": [CONVOLUTION], "totals": totals}
    card = build.sketched_card(**parts, outputs=tags, compression_curve=BY_METRIC)
    build.put(root, tiny.graph(), "tags", card=card)
    build.put(root, tiny.graph(), "plain")
    build.put(root, _photos(), "photos")
    text = (TensorProto.STRING, TensorProto.STRING)
    build.put(root, _graph(helper.make_node("Identity", ["x"], ["y"]), (["n"], ["n"]), text), "echo")
    (root / "unreadable" / "1").mkdir(parents=True)
    (root / "unreadable" / "1" / "model.onnx").write_bytes(b"nonsense")
    return root


@pytest.fixture(scope="session")
def many(repository):
    """A server of these models."""
    with started(repository, "--default-model", "animals", until="not ready: ") as server:
        yield server


@pytest.fixture(scope="module")  # while it is open an event loop runs in this thread, which other tests need
def chromium():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


class Visit:
    """A page, and what went wrong on it."""

    def __init__(self, context):
        self.page = context.new_page()
        self.problems = []
        self.hosts = set()
        self.page.on("console", lambda said: self.problems.append(said.text) if said.type != "log" else None)
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("request", lambda request: self.hosts.add(request.url.split("/")[2]))
        self.page.set_default_timeout(60_000)

    def go(self, url, opened):
        """Open the page and the cards of some models; None: the one that opens by itself."""
        self.page.goto(url)
        self.page.locator("[data-model]").first.wait_for()
        for name in opened or ():
            button = self.page.get_by_role("button", name=name, exact=True)
            if button.get_attribute("aria-expanded") == "false":
                button.click()
            self.page.locator(f"[data-model={name}] .about .block").first.wait_for()
        if opened is None:
            self.page.locator("[data-model] .about .block").first.wait_for()
        return self.page


@pytest.fixture
def visit(chromium):
    """Open a page: ``visit(url, opened=["m"], viewport=…, color_scheme=…)``: the page and what went wrong on it."""
    contexts = []

    def open_page(url, opened=None, viewport=DESKTOP, color_scheme="light", **options):
        context = chromium.new_context(viewport=viewport, color_scheme=color_scheme, **options)
        contexts.append(context)
        visited = Visit(context)
        visited.go(url, opened)
        return visited

    yield open_page
    for context in contexts:
        context.close()


@pytest.fixture(scope="session")
def until():
    """Wait until an expression is true in the page; Playwright's own way is refused by the page's policy."""

    def wait(page, expression, seconds=60):
        deadline = time.monotonic() + seconds
        while not page.evaluate(expression):
            assert time.monotonic() < deadline, f"never came true: {expression}; {page.locator('body').inner_text()}"
            page.wait_for_timeout(30)

    return wait
