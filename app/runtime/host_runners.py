"""Runners on arrays in host memory: on the CPU, and on CUDA if nothing faster is possible."""

import ctypes
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime as ort

from app.runtime.cuda.cudart import CudaRuntime
from app.runtime.runner import Meanwhile, Parts, Runner, RunResult
from app.runtime.tensors import TensorSpec

_BFLOAT16 = 16  # onnx.TensorProto.BFLOAT16


class CpuRunner:
    """Runs a session on numpy arrays."""

    gathers = False

    def __init__(self, session: Any) -> None:
        # Use the session of the extension module: its Python wrapper checks each input again, after the decoder, and
        # falls back to another provider after an error, which is disabled here.
        self._run = getattr(session, "_sess", session).run

    def run(
        self,
        feeds: Mapping[str, Parts],
        output_names: Sequence[str],
        options: ort.RunOptions | None = None,
        meanwhile: Meanwhile | None = None,  # noqa: ARG002 - the host is busy with the run
    ) -> RunResult:
        """Run the graph; see ``Runner``."""
        return RunResult(self._run(output_names, feeds, options))


class OrtValueRunner:
    """Runs a session with bfloat16 tensors, which numpy lacks: their bits travel as uint16.

    Args:
        session: Session of onnxruntime.
        inputs, outputs: Tensors of the graph.
    """

    gathers = False

    def __init__(self, session: Any, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> None:
        self._session = session
        self._bfloat16 = {spec.name for spec in (*inputs, *outputs) if spec.datatype == "BF16"}

    def run(
        self,
        feeds: Mapping[str, Parts],
        output_names: Sequence[str],
        options: ort.RunOptions | None = None,
        meanwhile: Meanwhile | None = None,  # noqa: ARG002 - the host is busy with the run
    ) -> RunResult:
        """Run the graph; see ``Runner``."""
        values = {}
        for name, array in feeds.items():
            if name in self._bfloat16:
                values[name] = ort.OrtValue.ortvalue_from_numpy_with_onnx_type(np.ascontiguousarray(array), _BFLOAT16)
            else:
                values[name] = ort.OrtValue.ortvalue_from_numpy(array)
        arrays = []
        for name, value in zip(
            output_names, self._session.run_with_ort_values(output_names, values, options), strict=True
        ):
            if name in self._bfloat16:
                bits = ctypes.string_at(value.data_ptr(), value.tensor_size_in_bytes())
                arrays.append(np.frombuffer(bits, np.uint16).reshape(value.shape()))
            else:
                arrays.append(value.numpy())
        return RunResult(arrays)


class DeviceRunner:
    """Runs a session on CUDA from host arrays, with its device as the current device of the calling thread.

    A thread runs instances on several devices, and cuBLAS fails if another device is current.

    Args:
        host: Runs the session from host arrays.
        runtime, device_id: The CUDA runtime, and the device of the session.
    """

    gathers = False

    def __init__(self, host: Runner, runtime: CudaRuntime, device_id: int) -> None:
        self._host, self._runtime, self._device_id = host, runtime, device_id

    def run(
        self,
        feeds: Mapping[str, Parts],
        output_names: Sequence[str],
        options: ort.RunOptions | None = None,
        meanwhile: Meanwhile | None = None,
    ) -> RunResult:
        """Run the graph; see ``Runner``."""
        if self._runtime.several:
            self._runtime.set_device(self._device_id)
        return self._host.run(feeds, output_names, options, meanwhile)


def host_runner(session: Any, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> Runner:
    """The runner for the tensor types of a session."""
    if any(spec.datatype == "BF16" for spec in (*inputs, *outputs)):
        return OrtValueRunner(session, inputs, outputs)
    return CpuRunner(session)
