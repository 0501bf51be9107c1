"""The code of the documents runs: Python blocks in order in one namespace, console blocks against a real server.

Pages whose code another test runs are named with it. What a page tells a person to type that can't run here (it makes
environments, needs Docker, or is a sketch of one's own) is listed with the test that runs it instead, or the reason.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tomllib
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

# Two threads on two cores that others use too wait for each other at every small product.
torch.set_num_threads(1)

ROOT = Path(__file__).parents[3]
FENCED = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
ELSEWHERE = {
    "docs/conversion.md": "tests/packaging/docs/test_conversion_page.py",
    "docs/export.md": "tests/packaging/docs/test_export_page.py",
    "docs/layers.md": "tests/packaging/docs/test_library_pages.py",
    "docs/compress.md": "tests/packaging/docs/test_compress_page.py",
    "docs/training.md": "tests/packaging/docs/test_library_pages.py",
}
NOT_HERE = {
    r"make (run|test|docs|bench|report|check|lint)\b": "tests/packaging/deploy/test_make.py, tests/packaging/docs/",
    r"docker |kubectl |kustomize |minikube ": "tests/packaging/deploy/",
    r"python3 -m venv |\.venv/bin/pip |\. \.venv/bin/activate": "scripts/environment does the same",
    r"(\.venv/bin/)?panther train$": "tests/unit/panther/cli/test_train.py",
    r"panther (compress|quantize) |torchrun ": "tests/unit/panther/cli/, tests/unit/panther/train/",
    r"PANTHER_TRACING=otlp ": "tests/unit/app/telemetry/test_tracing.py",
    r"nvidia-smi$|ss ": "need a GPU, and the shell of the server's host",
    r"python -m app --device cuda\b": "needs a GPU; tests/gpu/, tests/integration/test_cuda.py",
}
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"))
    if re.search(r"^```(python|console|toml|json)\b", path.read_text(encoding="utf-8"), re.MULTILINE)
)


def commands(block):
    """What follows each ``$``, with lines that a backslash continues."""
    parts = re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]
    return [re.match(r"(?:.*\\\n)*.*", part)[0].strip() for part in parts]


class Reader:
    """Somebody who types in what a page says, in a folder of their own."""

    def __init__(self, folder, serve):
        self.folder, self.serve = folder, serve
        self.stack, self.address = contextlib.ExitStack(), None
        rows = np.array(json.loads((ROOT / "examples" / "digit.json").read_text())["inputs"], np.float32)
        np.save(folder / "rows.npy", rows)
        np.savetxt(folder / "rows.csv", rows, delimiter=",")
        (folder / "instances.json").write_text(json.dumps({"instances": rows.tolist()}))
        self.names = {"__name__": "document", "rows": rows}

    def ask_at(self, models):
        """Stop the server that runs, start one of this folder."""
        self.stack.close()
        self.address = self.stack.enter_context(self.serve(models))

    def here(self, text):
        """The text with the address of the server that runs, the shipped models' where none was started."""
        if not re.search(r"(localhost|127\.0\.0\.1):8000", text):
            return text
        if self.address is None:
            self.ask_at(ROOT / "models")
        return re.sub(r"http://(localhost|127\.0\.0\.1):8000|(localhost|127\.0\.0\.1):8000", self.address, text)

    def python(self, block, where):
        code = compile(self.here(block), where, "exec")
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("error")
            exec(code, self.names)

    def console(self, block, where):
        for command in commands(block):
            serve = re.match(r"panther serve(?: --model-dir (\S+))?$", command)
            if serve:
                self.ask_at((self.folder / serve[1]).resolve() if serve[1] else ROOT / "models")
            elif not any(re.match(pattern, command) for pattern in NOT_HERE):
                self.run(command, where)

    def run(self, command, where):
        assert re.match(r"(curl|panther|python) ", command), f"{where}: is this run anywhere? {command}"
        line = re.sub(r"^panther ", f"{shlex.quote(sys.executable)} -m panther.cli ", self.here(command))
        line = re.sub(r"^python ", f"{shlex.quote(sys.executable)} ", line)
        line = re.sub(r"^curl ", "curl --fail-with-body ", line)
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        started = subprocess.Popen(
            line, shell=True, cwd=self.folder, env=environment, text=True, start_new_session=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            printed, _ = started.communicate(timeout=60)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(started.pid, signal.SIGKILL)
        assert started.returncode == 0, f"{where}: {command}\n{printed}"


@pytest.mark.parametrize("page", [page for page in PAGES if page not in ELSEWHERE and page != "README.md"])
def test_what_a_page_says_can_be_typed_in(page, tmp_path, monkeypatch, serve):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    reader = Reader(tmp_path, serve)
    with reader.stack, torch.random.fork_rng():
        for number, (language, block) in enumerate(FENCED.findall((ROOT / page).read_text(encoding="utf-8"))):
            where = f"{page}, block {number}"
            if language == "python":
                reader.python(block, where)
            elif language == "console":
                reader.console(block, where)
            elif language == "toml":
                tomllib.loads(block)
            elif language == "json":
                json.loads(block)


README = FENCED.findall((ROOT / "README.md").read_text(encoding="utf-8"))
RESULT = re.compile(r"([\d,]+) → ([\d,]+) bytes, accuracy ([\d.]+)% → ([\d.]+)%")


@pytest.mark.parametrize(
    "block", [block for language, block in README if language == "python"], ids=["shrink", "train"]
)
def test_each_block_of_the_readme_runs_alone(block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with contextlib.redirect_stdout(io.StringIO()) as printed, torch.random.fork_rng():
        exec(compile(block, "README.md", "exec"), {"__name__": "document"})
    (written,) = tmp_path.glob("models/*/1/model.onnx")
    found = RESULT.search(printed.getvalue())
    if found is None:
        assert written.relative_to(tmp_path).as_posix() in printed.getvalue()
        return
    shown = next(RESULT.search(text) for language, text in README if language == "text")
    before, after, original, accuracy = (float(group.replace(",", "")) for group in found.groups())
    assert before == float(shown[1].replace(",", ""))
    assert after == pytest.approx(float(shown[2].replace(",", "")), rel=0.2)  # which options win depends on rounding
    assert original == pytest.approx(float(shown[3]), abs=2)
    assert accuracy == pytest.approx(float(shown[4]), abs=2)


@pytest.mark.parametrize(("page", "test"), ELSEWHERE.items())
def test_the_other_pages_are_run_where_it_is_said(page, test):
    text = (ROOT / test).read_text(encoding="utf-8")
    assert Path(page).name in text
    assert "exec(compile(" in text


def test_a_block_has_a_language_that_is_run_or_is_no_code():
    known = {"python", "console", "toml", "json", "bash", "text", "yaml", "promql", "dockerfile", ""}
    for page in (*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")):
        for language, block in FENCED.findall(page.read_text(encoding="utf-8")):
            assert language in known, page.name
            assert language or not re.search(r"^(import|from) \w+", block, re.MULTILINE), f"{page.name}: {block}"
