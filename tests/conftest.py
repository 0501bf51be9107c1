"""Fixtures that the server's tests share. What needs the server is imported in them: the tests on a GPU have none."""

from __future__ import annotations

import contextlib
import gc
import os
import sys
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from _pytest.doctest import DoctestModule

if TYPE_CHECKING:
    import httpx
    import onnx
    from helpers.build import Tiny
    from helpers.host_cuda import HostRuntime

os.environ["ORT_DISABLE_TELEMETRY"] = "1"
gc.set_threshold(100_000, 50, 100)  # collecting garbage as often as usual takes a tenth of an export's processor time
# A file is run by one process: those that take longest come first, so that all processes end at about the same time.
LONGEST_FILES = (
    "integration/test_architectures.py",
    "integration/end_to_end/test_documents.py",
    "integration/end_to_end/test_examples.py",
    "unit/panther/convert/test_collected.py",
    "integration/processes/test_ending.py",
    "integration/test_processes.py",
    "integration/processes/test_workers.py",
    "unit/panther/compression/test_api.py",
    "integration/processes/test_grpc.py",
    "integration/browser/test_page.py",
    "integration/processes/test_folder.py",
    "unit/panther/cli/test_train.py",
    "integration/end_to_end/test_main_job.py",
    "integration/browser/test_screens.py",
    "packaging/docs/test_site.py",
)


class OnlyFilesWithDoctests:
    """Don't import a file for its doctests where it has none: that takes a third of the collection's time."""

    @pytest.hookimpl(wrapper=True)
    def pytest_collect_file(self, file_path: Path) -> Generator[None, list[pytest.Collector], list[pytest.Collector]]:
        collectors = yield
        if any(isinstance(each, DoctestModule) for each in collectors) and b">>>" not in file_path.read_bytes():
            return [each for each in collectors if not isinstance(each, DoctestModule)]
        return collectors


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(OnlyFilesWithDoctests())  # a plugin, since a conftest.py's hooks see only its folder


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {str(Path(__file__).parent / name): place for place, name in enumerate(LONGEST_FILES)}
    items.sort(key=lambda item: places.get(str(item.path), len(places)))


def pytest_collection_finish() -> None:
    """Keep what exists so far out of each garbage collection, and share what exports and clients make each time."""
    gc.collect()
    gc.freeze()
    if "torch" in sys.modules:
        with contextlib.suppress(ImportError, AttributeError):  # no onnxscript, or a torch that does it in another way
            from helpers import optimizer, torchlib

            torchlib.reuse()
            optimizer.reuse()
    if "httpx" in sys.modules:
        from helpers import tls

        tls.reuse()


def pytest_unconfigure() -> None:
    if "helpers.optimizer" in sys.modules:
        sys.modules["helpers.optimizer"].OPTIMIZER.end()


@pytest.fixture(scope="session")
def tiny() -> Tiny:
    from helpers.build import Tiny

    return Tiny()


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> HostRuntime:
    """CUDA's runtime, played on the host; the CPU's provider takes the place of CUDA's."""
    from helpers.host_cuda import HostRuntime

    monkeypatch.setattr("app.runtime.cuda.graphs.CudaGraphRunner.memory", "cpu")
    monkeypatch.setattr("app.runtime.cuda.accelerate.CUDA", "CPUExecutionProvider")
    return HostRuntime()


@pytest.fixture(scope="session")
def tiny_dir(tmp_path_factory: pytest.TempPathFactory, tiny: Tiny) -> Path:
    from helpers.build import put, sketched_card

    root = tmp_path_factory.mktemp("models")
    put(root, tiny.graph(), "tiny", card=sketched_card())
    return root


@pytest.fixture(scope="session")
def client(tiny_dir: Path) -> Iterator[httpx.Client]:
    from helpers.build import running

    with running(tiny_dir) as client:
        yield client


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., httpx.Client]]:
    """Serve one graph as model ``m``; returns its client."""
    from helpers.build import put, running

    stack = []

    def start(model: onnx.ModelProto, card: Any = None, **settings: Any) -> httpx.Client:
        put(tmp_path, model, "m", card=card)
        context = running(tmp_path, **settings)
        stack.append(context)
        return context.__enter__()

    yield start
    for context in reversed(stack):
        context.__exit__(None, None, None)
