"""One instance of a model: a session on one device, and its runner."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import onnxruntime as ort

from app.errors import InferenceFailedError
from app.runtime.cuda.accelerate import CudaReport, accelerate
from app.runtime.cuda.buffers import CudaTarget
from app.runtime.cuda.graphs import relative_error
from app.runtime.device import CUDA, open_session
from app.runtime.host_runners import DeviceRunner, host_runner
from app.runtime.runner import Meanwhile, Parts, Runner, RunResult
from app.runtime.session import Session
from app.runtime.signature import Signature
from app.runtime.tensors import Array

_TF32_ROWS = 64

Feeds = Callable[[int], Mapping[str, Array]]
"""Makes random inputs with a number of rows."""


class ModelInstance:
    """One session of a model; a model may have several, on one or more devices.

    Args:
        name: Name of the model, for error messages.
        session: Session of onnxruntime with its device.
        signature: Tensors of the graph.

    Attributes:
        runner: Runs the session.
        cuda: The way it runs on CUDA, or None on another provider.
    """

    def __init__(self, name: str, session: Session, signature: Signature) -> None:
        self.name = name
        self.session = session
        self.signature = signature
        self.cuda: CudaReport | None = None
        self.runner: Runner = host_runner(session.ort, tuple(signature.input_by_name.values()), signature.outputs)
        if session.providers[0] == CUDA and session.device.runtime is not None:
            self.runner = DeviceRunner(self.runner, session.device.runtime, session.device.cuda.device_id)

    @property
    def device(self) -> str:
        """Name of its device, such as ``cuda:1``; ``cpu`` for any other provider."""
        return f"cuda:{self.session.device.cuda.device_id}" if self.session.providers[0] == CUDA else "cpu"

    @property
    def gathers(self) -> bool:
        """Whether ``run`` takes the arrays of several requests as lists."""
        return self.runner.gathers

    def run(
        self,
        feeds: Mapping[str, Parts],
        output_names: Sequence[str],
        options: ort.RunOptions | None = None,
        meanwhile: Meanwhile | None = None,
    ) -> RunResult:
        """Run the graph; see ``Runner.run``.

        Raises:
            InferenceFailedError: The runtime reports an error.
        """
        try:
            return self.runner.run(feeds, output_names, options, meanwhile)
        except Exception as error:  # onnxruntime raises many kinds
            self.session.check_device()
            raise InferenceFailedError(f"model {self.name!r} failed on this input: {_first_line(error)}") from error

    def prepare(self, path: Path, max_rows: int, batched_rows: int | None, feeds: Feeds) -> None:
        """On CUDA, allocate buffers and capture graphs; on the CPU, do nothing.

        Args:
            path: Path of the model.
            max_rows: Rows of the largest batch.
            batched_rows: The same if the buffers hold batches, else None.
            feeds: Makes inputs for trial runs.
        """
        if self.session.providers[0] != CUDA:
            return
        device, signature = self.session.device, self.signature
        target = None
        if device.runtime is not None and self.session.stream is not None:
            target = CudaTarget(device.runtime, device.cuda.device_id, self.session.stream, device.bodies)
        self.cuda, runner = accelerate(self.session.ort, signature, batched_rows, device, target, feeds, self.runner)
        if runner is not None:
            self.runner = runner
        if device.cuda.tf32:
            self.cuda.tf32_max_relative_error = self._tf32_error(path, feeds(min(max_rows, _TF32_ROWS)))

    def _tf32_error(self, path: Path, feeds: Mapping[str, Array]) -> float:
        """The largest relative error of an output against a session without TF32."""
        device, choices, signature = self.session.device.without_tf32(), self.session.choices, self.signature
        session, _ = open_session(str(path), device, self.session.num_threads, choices=choices)
        exact = host_runner(session, signature.inputs, signature.outputs)
        found = self.run(feeds, signature.output_names).arrays
        expected = exact.run(feeds, signature.output_names).arrays
        return max(relative_error(*arrays) for arrays in zip(found, expected, signature.outputs, strict=True))


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
