"""How a model is run on CUDA: the quickest way that it allows, and the reason why not a quicker one."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from app.cuda_runner import CudaRunner, Feeds, check_buffers, first_line
from app.cuda_runs import Plain
from app.cudart import CudaError
from app.device import CUDA, Device
from app.placement import find_placement, why_not_captured
from app.tensors import TensorSpec


@dataclass
class CudaReport:
    """How a model runs on CUDA, as ``/stats`` tells it.

    Attributes:
        device_id: the device.
        mode: ``graph``: one CUDA graph for each batch size; ``bound``: node by node from the same buffers; ``host``:
            node by node from arrays that are copied anew.
        reason: why not a quicker mode, or None.
        batch_sizes: to which batches are padded; None in the mode ``host``, and where nothing is batched.
        padded_to: for each of them the size that its batches are run at, where a larger one was measured to be quicker.
        tf32: whether products of float32 are computed in TF32.
        tf32_max_relative_error: of the outputs against those without, over the largest of them, on random rows.
        buffer_bytes: of the device, for inputs and outputs.
    """

    device_id: int
    mode: str = "host"
    reason: str | None = None
    batch_sizes: tuple[int, ...] | None = None
    padded_to: tuple[int, ...] | None = None
    tf32: bool = False
    tf32_max_relative_error: float | None = None
    buffer_bytes: int = 0


def accelerate(
    session: Any,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    max_rows: int | None,
    device: Device,
    stream: int | None,
    feeds: Feeds,
    plain: Plain,
) -> tuple[CudaReport, CudaRunner | None]:
    """Find the quickest way in which a session on CUDA can be run.

    Args:
        session, inputs, outputs, max_rows, plain, stream: see ``CudaRunner``; without a stream there is no runner.
        device: what the session was made for.
        feeds: makes inputs of so many rows.

    Returns:
        Which way that is, and the runner; None where runs go from arrays of the host.
    """
    report = CudaReport(device.cuda.device_id, tf32=device.cuda.tf32)
    if device.runtime is None or stream is None:
        report.reason = f"no buffers: {device.runtime_problem}"
        return report, None
    try:
        check_buffers(inputs, outputs, batched=max_rows is not None)
        runner = CudaRunner(
            session, inputs, outputs, max_rows, plain, device.runtime, device.cuda.device_id, stream, device.bodies
        )
        runner.warm_up(feeds)
    except Exception as error:  # noqa: BLE001 - onnxruntime raises many kinds; random input is not to every model's liking
        report.reason = f"no buffers: {first_line(error)}"
        return report, None
    report.mode = "bound"
    report.batch_sizes = runner.sizes if runner.batched else None
    report.buffer_bytes = runner.buffer_bytes
    why = why_not_captured(find_placement(session), CUDA) if device.cuda.graphs else "cuda_graphs is off"
    if why is None:
        try:
            runner.capture(feeds)
            report.mode = "graph"
            report.padded_to = runner.padded_to if runner.batched else None
        except CudaError as error:
            why = str(error)
    if why is not None:
        report.reason = f"no graphs: {why}"
    return report, runner
