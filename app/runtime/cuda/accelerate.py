"""How a model is run on CUDA: the fastest way that it allows, and the reason why not a faster one."""

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
    """How a model runs on CUDA, as ``/stats`` shows it.

    Attributes:
        device_id: the device.
        mode: ``graph``: one CUDA graph for each batch size; ``bound``: node by node from the same buffers; ``host``:
            node by node from arrays of the host.
        reason: why not a faster mode, or None.
        batch_sizes: to which batches are padded; None in the mode ``host``, and where nothing is batched.
        padded_to: for each of them the size that its batches are run at, where a larger one was measured to be faster.
        buffer_bytes: of the device, for inputs and outputs.
        tf32: whether products of float32 are computed in TF32.
        tf32_max_relative_error: of the outputs against those without, over the largest of them, on random rows.
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
    """Find the fastest way to run a session on CUDA.

    Args:
        session, signature, max_rows, host: see ``CudaRuns``.
        device: what the session was made for.
        target: where to run; None where buffers are not possible.
        feeds: makes inputs of so many rows.

    Returns:
        The way, and the runner; None where runs go from arrays of the host.
    """
    report = CudaReport(device.cuda.device_id, tf32=device.cuda.tf32)
    if target is None:
        report.reason = f"no buffers: {device.runtime_problem}"
        return report, None
    try:
        check_buffers(signature.inputs, signature.outputs, batched=max_rows is not None)
        runner = CudaGraphRunner(session, signature, max_rows, host, target)
        runner.warm_up(feeds)
    except Exception as error:  # noqa: BLE001 - onnxruntime raises many kinds; random input is not to every model's liking
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
