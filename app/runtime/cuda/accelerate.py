"""Choose the fastest possible way to run a model on CUDA, and record the reason against a faster one."""

from dataclasses import dataclass
from typing import Any

from app.runtime.cuda.buffers import CudaTarget
from app.runtime.cuda.cudart import CudaError
from app.runtime.cuda.graphs import CudaGraphRunner, Feeds, check_buffers, first_line
from app.runtime.device import CUDA, Device
from app.runtime.placement import find_placement, why_not_captured
from app.runtime.runner import Runner
from app.runtime.signature import Signature


@dataclass
class CudaReport:
    """The way a model runs on CUDA, as ``/stats`` shows it.

    Attributes:
        device_id: The CUDA device.
        mode: ``graph``: one CUDA graph per batch size; ``bound``: node by node from the same buffers; ``host``:
            node by node from arrays in host memory.
        reason: The reason against a faster mode, or None.
        batch_sizes: Sizes that batches are padded to; None in mode ``host``, and without batching.
        padded_to: The size at which batches of each size run: a larger one if it was measured to be faster.
        buffer_bytes: Device memory for inputs and outputs.
        tf32: Whether float32 products are computed in TF32.
        tf32_max_relative_error: Error of the outputs due to TF32, relative to the largest value, on random rows.
    """

    device_id: int
    mode: str = "host"
    reason: str | None = None
    batch_sizes: tuple[int, ...] | None = None
    padded_to: tuple[int, ...] | None = None
    buffer_bytes: int = 0
    tf32: bool = False
    tf32_max_relative_error: float | None = None


def accelerate(
    session: Any,
    signature: Signature,
    max_rows: int | None,
    device: Device,
    target: CudaTarget | None,
    feeds: Feeds,
    host: Runner,
) -> tuple[CudaReport, CudaGraphRunner | None]:
    """Choose the fastest way to run a session on CUDA.

    Args:
        session, signature, max_rows, host: See ``CudaRuns``.
        device: The device of the session.
        target: Where to run; None if buffers are not possible.
        feeds: Makes inputs with a number of rows.

    Returns:
        The report, and the runner; None if runs use arrays in host memory.
    """
    report = CudaReport(device.cuda.device_id, tf32=device.cuda.tf32)
    if target is None:
        report.reason = f"no buffers: {device.runtime_problem}"
        return report, None
    try:
        check_buffers(signature.inputs, signature.outputs, batched=max_rows is not None)
        runner = CudaGraphRunner(session, signature, max_rows, host, target)
        runner.warm_up(feeds)
    except Exception as error:  # noqa: BLE001 - onnxruntime raises many kinds; some models reject random input
        report.reason = f"no buffers: {first_line(error)}"
        return report, None
    report.mode = "bound"
    report.batch_sizes = runner.sizes if runner.batched else None
    report.buffer_bytes = runner.buffers.nbytes
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
