"""onnxruntime sessions with the server's options, and the optimized graph."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from panther.export.errors import ExportError, first_line

if TYPE_CHECKING:
    import onnx

_CGROUP = Path("/sys/fs/cgroup")
# exit status of the graph-optimizing process when onnxruntime rejects the model
_REFUSED = 3
DEVICES = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


@dataclass(frozen=True)
class Target:
    """Device that an exported model is meant for.

    Attributes:
        device: "cpu" or "cuda".
        num_threads: of onnxruntime's pool for the work of one request, on the CPU.
    """

    device: str = "cpu"
    num_threads: int = 1

    def __post_init__(self) -> None:
        if self.device not in DEVICES:
            raise ValueError(f"target device ({self.device!r}) must be one of {sorted(DEVICES)}")
        if self.num_threads < 1:
            raise ValueError(f"num_threads ({self.num_threads}) must be at least 1")


def available_cores() -> int:
    """The CPU cores that this process may run on, by its affinity and by the quota of its control group."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(cores, _cgroup_quota(_CGROUP))))


def _cgroup_quota(folder: Path) -> float:
    """Cores that Linux control groups of either version allow; infinite where they set no limit."""
    for read in (_cgroup_v2, _cgroup_v1):
        with contextlib.suppress(OSError, ValueError):
            quota, period = read(folder)
            return quota / period if quota > 0 and period > 0 else math.inf
    return math.inf


def _cgroup_v2(folder: Path) -> tuple[float, float]:
    quota, period = (folder / "cpu.max").read_text().split()
    return (0 if quota == "max" else int(quota)), int(period)


def _cgroup_v1(folder: Path) -> tuple[float, float]:
    quota, period = ((folder / "cpu" / f"cpu.cfs_{kind}_us").read_text() for kind in ("quota", "period"))
    return int(quota), int(period)


def onnxruntime() -> Any:
    """The module, its telemetry switched off before it is imported.

    Raises:
        ExportError: it is not installed.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        import onnxruntime as ort
    except ImportError as error:
        raise ExportError(
            "an export needs onnxruntime: install the extra 'cpu' (or 'gpu') of panther-sketch"
        ) from error
    return ort


def load(
    model: Path | bytes,
    target: Target,
    *,
    optimized_path: Path | None = None,
    cuda_graph: bool = False,
) -> Any:
    """Load a model at full optimization on the target.

    Args:
        model: path of a file, or the bytes of one.
        target: what to run on.
        optimized_path: where onnxruntime shall write the graph that it runs, large constants in a file beside it.
        cuda_graph: replay the launches of a run as one, for inputs of one shape in buffers of one place.

    Raises:
        ExportError: onnxruntime does not take the model, or does not run it on the target's device.
    """
    ort = onnxruntime()
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.intra_op_num_threads = target.num_threads
    options.inter_op_num_threads = 1
    # sessions are timed in turn: a pool that spins after its run would slow the next session
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # errors are raised; only fatal messages are printed
    options.log_severity_level = 4
    if optimized_path is not None:
        options.optimized_model_filepath = str(optimized_path)
        options.add_session_config_entry(
            "session.optimized_model_external_initializers_file_name", f"{optimized_path.name}.data"
        )
        options.add_session_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", "1024")
    provider = DEVICES[target.device]
    if target.device == "cuda":
        if provider not in ort.get_available_providers():
            raise ExportError(
                "this onnxruntime has no CUDA: install the extra 'gpu' of panther-sketch in place of 'cpu'"
            )
        ort.preload_dlls()
    provider_options: dict[str, str] = {}
    if target.device == "cuda":
        # no TF32, onnxruntime's default: it puts an output off by 3e-4 of the largest
        provider_options = {"use_tf32": "0", "enable_cuda_graph": "1" if cuda_graph else "0"}
    try:
        session = ort.InferenceSession(
            model if isinstance(model, bytes) else str(model), options, providers=[(provider, provider_options)]
        )
    except Exception as error:
        raise ExportError(f"onnxruntime rejects the model: {first_line(error)}") from error
    if session.get_providers()[0] != provider:
        raise ExportError(
            f"{provider} was requested, but onnxruntime runs on {session.get_providers()[0]}: CUDA is not available"
        )
    session.disable_fallback()
    return session


def optimized_graph(model: Path, target: Target) -> onnx.ModelProto:
    """The graph that onnxruntime runs, without the contents of large constants.

    On the CPU a separate process makes it: there are models that end the process which loads them, such as an LSTM in
    float16 before a linear layer (onnxruntime 1.32), and no exception comes of it.

    Raises:
        ExportError: onnxruntime does not take the model, or ends the process.
    """
    import onnx  # imported here: the graph-optimizing process must not load it

    with tempfile.TemporaryDirectory(prefix="panther-") as folder:
        path = Path(folder) / "optimized.onnx"
        if target.device == "cpu":
            _optimize_apart(model, path)
        else:
            load(model, target, optimized_path=path)
        return onnx.load(path, load_external_data=False)


def _optimize_apart(model: Path, path: Path) -> None:
    python_path = os.pathsep.join(entry for entry in sys.path if entry)
    child = subprocess.run(  # noqa: S603 - this very interpreter  # nosec B603
        [sys.executable, "-P", "-m", __name__, str(model), str(path)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": python_path},
        check=False,
    )
    if child.returncode == _REFUSED:
        raise ExportError(child.stdout.strip())
    if child.returncode < 0:
        name = signal.Signals(-child.returncode).name
        raise ExportError(
            f"onnxruntime crashed while it loaded the model ({name}): it does not support a layer in this precision; "
            "try another precision"
        )
    if child.returncode:
        said = child.stderr.strip().splitlines() or [f"exit status {child.returncode}"]
        raise ExportError(f"the process that loads the model failed: {said[-1]}")


if __name__ == "__main__":
    try:
        load(Path(sys.argv[1]), Target(), optimized_path=Path(sys.argv[2]))
    except ExportError as error:
        sys.stdout.write(str(error))
        sys.exit(_REFUSED)
