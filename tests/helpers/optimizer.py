"""The process in which an export has onnxruntime optimize the graph, started once instead of once per export.

Starting Python and importing onnxruntime takes longer than the work. A model that the process does not take is given to
a process of its own, as outside of the tests, so that every error comes from there.
"""

import contextlib
import functools
import json
import os
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import json, sys
from pathlib import Path
from panther.export.ort import Target, load
for line in sys.stdin:
    model, path = map(Path, json.loads(line))
    try:
        load(model, Target(), optimized_path=path)
        answer = "done"
    except Exception:
        answer = "failed"
    print(answer, flush=True)
"""


class Optimizer:
    """The process, which is started when it is needed and ends when its input is closed."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def take(self, model: Path, path: Path) -> bool:
        """Whether the process wrote the optimized graph."""
        if self._process is None:
            self._process = self._start()
        try:
            self._process.stdin.write(json.dumps([str(model.absolute()), str(path.absolute())]) + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            self.end()
        return answer == "done\n"

    def _start(self) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, "-P", "-c", PROGRAM],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)},
            cwd=Path(__file__).parents[2], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            text=True, start_new_session=True,
        )  # fmt: skip

    def end(self) -> None:
        if self._process is not None:
            self._process.kill()
            with contextlib.suppress(BrokenPipeError):
                self._process.communicate()
            self._process = None


OPTIMIZER = Optimizer()


def reuse() -> None:
    """Let exports of this process share one optimizing process."""
    from panther.export import ort

    alone = ort._optimize_apart
    if hasattr(alone, "__wrapped__"):
        return

    @functools.wraps(alone)
    def optimize_apart(model: Path, path: Path) -> None:
        if not OPTIMIZER.take(Path(model), Path(path)):
            alone(model, path)

    ort._optimize_apart = optimize_apart
