"""One model file, loaded: its session, its tensors, and its card."""

import ctypes
import logging
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from app.card import METADATA_KEY, Card, Output, parse_card
from app.codec.values import bfloat16_values
from app.cuda import CudaReport, accelerate
from app.cuda_runner import CudaRunner, relative_error
from app.cuda_runs import Meanwhile, Parts, Plain
from app.device import CUDA, Device, open_session
from app.errors import CardError, InferenceFailedError, LoadError, without_folders
from app.external import external_paths
from app.placement import find_placement
from app.tensors import Array, TensorSpec, tensor_spec

log = logging.getLogger(__name__)
_BFLOAT16 = 16  # onnx.TensorProto.BFLOAT16
_TF32_ROWS = 64
_LEAST = 1e-5  # outputs below this may be what rounding has left
# Given no elements at all, onnxruntime's kernels of these end the process.
_NEVER_EMPTY = {"AttnLSTM", "DynamicQuantizeLSTM", "GRU", "LSTM"}


class Model:
    """A version of a model, ready to run.

    Attributes:
        inputs, outputs: what the graph takes and gives.
        card: what the file says of itself, or None.
        card_problem: why a card that is there can't be used or trusted, or None.
        batched: whether rows of several requests may run together, because every tensor starts with the same
            dynamic dimension and a trial run showed that rows don't touch one another.
        fixed_rows: whether every row of an input has the same shape.
        labelled: the output whose last axis has labels in the card, or None.
        takes_empty: whether inputs without any elements may be run.
        placement: which provider runs which node; None where the runtime does not tell.
        cuda: how it runs on CUDA, or None on another provider.
        gathers: whether ``run`` takes the rows of several requests as they are.
        copy_ns: what the last run took to copy its inputs to CUDA and its outputs from there; 0 elsewhere.
        aside_ns: what the last run took longer because of what was done meanwhile.
        load_duration_s: from opening the file to the end of the trial run, and of ``prepare``.
    """

    def __init__(self, name: str, version: str, path: Path, device: Device, num_threads: int) -> None:
        started = time.perf_counter()
        self.name = name
        self.version = version
        self.path = path
        self.num_threads = num_threads
        self._device = device
        self._stream: int | None = None
        if device.streams is not None:
            self._stream = device.streams.take(device.cuda.device_id)
            weakref.finalize(self, device.streams.give, device.cuda.device_id, self._stream)
        self._runner: CudaRunner | None = None
        self.cuda: CudaReport | None = None
        self.copy_ns = 0, 0
        self.aside_ns = 0
        self.gathers = False
        try:
            self.session, self.device_reason = open_session(str(path), device, num_threads, self._stream)
            self.inputs = tuple(tensor_spec(node) for node in self.session.get_inputs())
            self.outputs = tuple(tensor_spec(node) for node in self.session.get_outputs())
            metadata: Mapping[str, str] = self.session.get_modelmeta().custom_metadata_map
        except LoadError:
            raise
        except Exception as error:  # onnxruntime raises many kinds
            message = without_folders(str(error).replace(str(path), path.name))
            raise LoadError(f"model {name!r} version {version}: {message}") from error
        self.input_by_name = {spec.name: spec for spec in self.inputs}
        self.output_by_name = {spec.name: spec for spec in self.outputs}
        self.output_names = tuple(self.output_by_name)
        self.providers: list[str] = self.session.get_providers()
        self.placement = find_placement(self.session)
        self.takes_empty = not any(node.op_type in _NEVER_EMPTY for node in self.placement or ())
        self.file_bytes = _file_bytes(path)
        self.card: Card | None = None
        self.card_problem: str | None = None
        self._read_card(metadata.get(METADATA_KEY))
        self.labelled = self._labelled_output()
        # The runtime's Python tensors can't hold brain floats: those models take the longer way over OrtValue.
        self._plain = all(spec.datatype != "BF16" for spec in (*self.inputs, *self.outputs))
        self._run_session = _direct_run(self.session)
        self._from_host = self._host_run(self.session)
        self.batched = self._may_batch()
        self.fixed_rows = all(None not in spec.shape[1:] for spec in self.inputs)
        self.load_duration_s = time.perf_counter() - started
        log.info(
            "loaded model %s version %s on %s (%d threads, %.0f ms)",
            name,
            version,
            self.provider,
            num_threads,
            1000 * self.load_duration_s,
        )

    @property
    def provider(self) -> str:
        """The execution provider that comes first, as read back from the session."""
        return self.providers[0]

    def run(
        self,
        feeds: Mapping[str, Parts],
        output_names: Sequence[str],
        options: ort.RunOptions | None = None,
        meanwhile: Meanwhile | None = None,
    ) -> list[Array]:
        """Run the graph.

        Args:
            feeds: input name to array; where the model ``gathers``, also to arrays to be put one below the other.
            output_names: outputs to compute, in order.
            options: of this run; to set its ``terminate`` stops it between two nodes.
            meanwhile: what else is to be done; called while a device is at work, or not at all.

        Raises:
            InferenceFailedError: the runtime reports an error.
        """
        try:
            if self._plain:
                return self._run_session(output_names, feeds, options)
            if self._runner is not None:
                results = self._runner.run(feeds, output_names, meanwhile)
                self.copy_ns = self._runner.input_ns, self._runner.output_ns
                self.aside_ns = self._runner.aside_ns
                return results
            return self._from_host(feeds, output_names)
        except Exception as error:  # onnxruntime raises many kinds
            if self._device.runtime is not None and self._stream is not None:
                self._device.runtime.look(self._stream)
            raise InferenceFailedError(f"model {self.name!r} failed on this input: {_first_line(error)}") from error

    def _host_run(self, session: Any) -> Plain:
        """What runs a session from arrays of the host; it must not refer to this object."""
        if self._plain:
            return partial(_run_plain, session)
        return partial(_run_values, session, self.input_by_name, self.output_by_name)

    def prepare(self, max_rows: int) -> None:
        """On CUDA lay out buffers and record graphs for batches of so many rows; on the CPU there is nothing to do."""
        if self.provider != CUDA:
            return
        started = time.perf_counter()
        rows = max_rows if self.batched else None
        self.cuda, self._runner = accelerate(
            self.session,
            self.inputs,
            self.outputs,
            rows,
            self._device,
            self._stream,
            self.random_feeds,
            self._from_host,
        )
        self.gathers = self._runner is not None
        self._plain = self._plain and not self.gathers
        if self._device.cuda.tf32:
            exact, _ = open_session(str(self.path), self._device.without_tf32(), self.num_threads)
            feeds = self.random_feeds(min(max_rows, _TF32_ROWS))
            found = self.run(feeds, self.output_names), self._host_run(exact)(feeds, self.output_names)
            self.cuda.tf32_max_relative_error = max(
                relative_error(mine, expected, spec) for mine, expected, spec in zip(*found, self.outputs, strict=True)
            )
        self.load_duration_s += time.perf_counter() - started
        log.info(
            "model %s version %s runs on CUDA device %d in the mode %s%s",
            self.name,
            self.version,
            self.cuda.device_id,
            self.cuda.mode,
            f": {self.cuda.reason}" if self.cuda.reason else "",
        )

    def _read_card(self, text: str | None) -> None:
        if text is None:
            return
        try:
            card = parse_card(text)
        except CardError as error:
            self.card_problem = str(error)
            log.warning("model %s version %s is served without its card: %s", self.name, self.version, error)
            return
        self.card = card
        problems = card.contradictions()
        if problems:
            self.card_problem = "; ".join(problems)
            log.warning("the card of model %s version %s contradicts itself: %s", self.name, self.version, problems[0])

    def _labelled_output(self) -> Output | None:
        for output in self.card.outputs if self.card else ():
            spec = self.output_by_name.get(output.name)
            if output.labels is None or output.kind is None or spec is None:
                continue
            if len(spec.shape) == 2 and spec.shape[1] == len(output.labels) and spec.datatype.startswith("FP"):
                return output
            log.warning("the %d labels of output %s don't fit its shape", len(output.labels), output.name)
        return None

    def _may_batch(self) -> bool:
        specs = (*self.inputs, *self.outputs)
        if not self.inputs or any(not spec.shape or spec.shape[0] is not None for spec in specs):
            return False
        symbols = {spec.names[0] for spec in specs}
        if len(symbols) > 1 or (symbols == {None} and len(self.inputs) > 1):
            return False
        return self._rows_are_independent()

    def random_feeds(self, rows: int) -> dict[str, Array]:
        """Inputs made up by a fixed seed, to try the model with; dynamic dimensions but the first are 2.

        Raises:
            LoadError: an input is larger than can be.
        """
        rng = np.random.default_rng(0)
        try:
            return {spec.name: _random_rows(spec, rows, rng) for spec in self.inputs}
        except (MemoryError, OverflowError, ValueError) as error:
            shapes = ", ".join(f"{spec.name!r} {spec.readable_shape}" for spec in self.inputs)
            raise LoadError(
                f"model {self.name!r} version {self.version}: inputs of these shapes can't be made: {shapes}: {error}"
            ) from None

    def _rows_are_independent(self) -> bool:
        """Run three random rows together and one by one; a model that mixes rows must not be batched."""
        feeds = self.random_feeds(3)
        try:
            together = self.run(feeds, self.output_names)
            for row in range(3):
                alone = self.run({name: array[row : row + 1] for name, array in feeds.items()}, self.output_names)
                for spec, whole, single in zip(self.outputs, together, alone, strict=True):
                    # A slice and not an element, which of a row of texts would be no array but a text.
                    if whole.shape[:1] != (3,) or not _alike(whole[row : row + 1], single, spec):
                        log.warning("model %s is not batched: its rows depend on one another", self.name)
                        return False
        except InferenceFailedError as error:
            log.warning("model %s is not batched: the trial run failed: %s", self.name, error)
            return False
        return True


def _direct_run(session: Any) -> Callable[..., list[Array]]:
    """A session's run without what its Python class checks before each: decoding has seen to that.

    Where a provider fails, that class also falls back on another one; ours are chosen at loading, and stay.
    """
    return getattr(session, "_sess", session).run  # type: ignore[no-any-return]


def _run_plain(session: Any, feeds: Mapping[str, Array], output_names: Sequence[str]) -> list[Array]:
    return session.run(output_names, feeds)  # type: ignore[no-any-return]


def _run_values(
    session: Any,
    inputs: Mapping[str, TensorSpec],
    outputs: Mapping[str, TensorSpec],
    feeds: Mapping[str, Array],
    output_names: Sequence[str],
) -> list[Array]:
    values = {}
    for name, array in feeds.items():
        if inputs[name].datatype == "BF16":
            values[name] = ort.OrtValue.ortvalue_from_numpy_with_onnx_type(np.ascontiguousarray(array), _BFLOAT16)
        else:
            values[name] = ort.OrtValue.ortvalue_from_numpy(array)
    results = session.run_with_ort_values(output_names, values)
    arrays = []
    for name, value in zip(output_names, results, strict=True):
        if outputs[name].datatype == "BF16":
            bits = ctypes.string_at(value.data_ptr(), value.tensor_size_in_bytes())
            arrays.append(np.frombuffer(bits, np.uint16).reshape(value.shape()))
        else:
            arrays.append(value.numpy())
    return arrays


def _random_rows(spec: TensorSpec, rows: int, rng: np.random.Generator) -> Array:
    first = () if not spec.shape else (rows if spec.shape[0] is None else spec.shape[0],)
    shape = (*first, *(2 if size is None else size for size in spec.shape[1:]))
    if spec.datatype == "BF16":
        return (rng.standard_normal(shape).astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    if spec.dtype.kind == "f":
        return rng.standard_normal(shape).astype(spec.dtype)
    numbers = rng.integers(0, 2, shape)
    if shape and shape[0] > 1:
        numbers[0] = 1 - numbers[1]  # so few might come out alike, and then no mix of rows would show
    return numbers.astype(str).astype(object) if spec.datatype == "BYTES" else numbers.astype(spec.dtype)


def _alike(left: Array, right: Array, spec: TensorSpec) -> bool:
    if left.shape != right.shape:
        return False
    if spec.datatype == "BF16":
        left, right = bfloat16_values(left), bfloat16_values(right)
    elif spec.dtype.kind != "f":
        return bool(np.array_equal(left, right))
    # Kernels may add in another order for another number of rows; a mix of rows shows far above that, also where all
    # numbers are small.
    left, right = np.atleast_1d(left).astype(np.float64), np.atleast_1d(right).astype(np.float64)
    largest = np.abs(left[np.isfinite(left)]).max(initial=_LEAST)
    return bool(np.allclose(left, right, rtol=0.05, atol=min(0.01, 0.05 * largest), equal_nan=True))


def _file_bytes(path: Path) -> int:
    """Bytes on disk: the file and the external data that it names, whatever else lies beside it."""
    parts = {path, *(file.resolve() for file in external_paths(path).values())}
    return sum(part.stat().st_size for part in parts)


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
