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
import pytest

ROOT = Path(__file__).parents[3]
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
        if Path(__file__).parent in item.path.parents:
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

    def start(self):
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
            deadline = time.monotonic() + 30
            while "ready: " not in log.read_text():
                assert time.monotonic() < deadline, log.read_text()
                assert self.process.poll() is None, log.read_text()
                time.sleep(0.02)
            self.port = int(re.search(r"listening on http://127.0.0.1:(\d+)", log.read_text())[1])

    def stop(self):
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            self.process.wait(20)

    def stats(self):
        return httpx.get(f"{self.url}/stats", timeout=20).json()


@contextmanager
def started(model_dir, *arguments):
    server = Server(model_dir, *arguments)
    server.start()
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
        self.page.set_default_timeout(15_000)

    def go(self, url):
        self.page.goto(url)
        self.page.wait_for_selector("[data-model] .counts dd")
        return self.page


@pytest.fixture
def visit(chromium):
    """Open a page: ``visit(url, viewport=…, color_scheme=…)``; yields the page and what went wrong on it."""
    contexts = []

    def open_page(url, viewport=DESKTOP, color_scheme="light", **options):
        context = chromium.new_context(viewport=viewport, color_scheme=color_scheme, **options)
        contexts.append(context)
        visited = Visit(context)
        visited.go(url)
        return visited

    yield open_page
    for context in contexts:
        context.close()


@pytest.fixture(scope="session")
def until():
    """Wait until an expression is true in the page; Playwright's own way is refused by the page's policy."""

    def wait(page, expression, seconds=15):
        deadline = time.monotonic() + seconds
        while not page.evaluate(expression):
            assert time.monotonic() < deadline, f"never came true: {expression}; {page.locator('body').inner_text()}"
            page.wait_for_timeout(30)

    return wait
