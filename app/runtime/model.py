"""A loaded model file: tensors, card and runner."""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import onnxruntime as ort

from app.errors import CardError, InferenceFailedError, LoadError, without_folders
from app.runtime.batching import Axes, Batching, Wanted, find_batching
from app.runtime.card import METADATA_KEY, Card, Column, Output, parse_card
from app.runtime.cuda.accelerate import CudaReport, accelerate
from app.runtime.cuda.buffers import CudaTarget
from app.runtime.cuda.graphs import relative_error
from app.runtime.device import CUDA, Device, open_session
from app.runtime.external_data import external_paths
from app.runtime.graph_tensors import graph_tensors
from app.runtime.host_runners import host_runner
from app.runtime.independence import prove
from app.runtime.placement import Node
from app.runtime.random_feeds import random_feeds
from app.runtime.recognition import why_no_model
from app.runtime.rewriting import CLASSES_KEY, class_names
from app.runtime.runner import Meanwhile, Parts, Runner, RunResult
from app.runtime.session import Session
from app.runtime.session_choices import AS_IT_COMES, SessionChoices
from app.runtime.signature import HasSignature, Signature
from app.runtime.tensors import Array, TensorSpec

log = logging.getLogger(__name__)
_TF32_ROWS = 64
# onnxruntime's kernels of these operators crash the process on empty tensors.
_NEVER_EMPTY = {"AttnLSTM", "DynamicQuantizeLSTM", "GRU", "LSTM", "Scan"}


class OnnxModel(HasSignature):
    """A version of a model, ready to run.

    Attributes:
        file_bytes: Size on disk, including external data.
        session: The onnxruntime session.
        signature: Its tensors, which are also properties of the model.
        takes_empty: Whether inputs without elements may be run.
        takes_no_rows: Whether a batch without rows may be run, as found by a trial run.
        card: The model card in the file, or None.
        card_problem: The reason why the card is unusable or wrong, or None.
        labelled: The output with labels for its last axis in the card, or None.
        batching: Whether and along which axes rows of several requests may run together, and why.
        runner: Runs the model.
        cuda: The way it runs on CUDA, or None on another provider.
        load_duration_s: Time from opening the file to the end of the trial run and of ``prepare``.
    """

    def __init__(
        self,
        name: str,
        version: str,
        path: Path,
        device: Device,
        num_threads: int,
        batching: Wanted = "auto",
        choices: SessionChoices = AS_IT_COMES,
    ) -> None:
        started = time.perf_counter()
        self.name = name
        self.version = version
        self.path = path
        try:
            self.session = Session(path, device, num_threads, choices)
            tensors = graph_tensors(self.session.ort, path)
            optional = () if CUDA in self.session.providers else tensors.optional
            self.signature = Signature(tensors.inputs, tensors.outputs, optional)
            metadata: Mapping[str, str] = self.session.ort.get_modelmeta().custom_metadata_map
        except LoadError:
            raise
        except Exception as error:  # onnxruntime raises many kinds
            message = why_no_model(path) or without_folders(str(error).replace(str(path), path.name))
            raise LoadError(f"model {name!r} version {version}: {message}") from error
        self.takes_no_rows = False
        self.file_bytes = _file_bytes(path)
        self.takes_empty = not any(node.op_type in _NEVER_EMPTY for node in self.session.placement or ())
        self.card, self.card_problem = _read_card(metadata.get(METADATA_KEY), f"model {name} version {version}")
        self.labelled = _labelled_output(self.card, self.output_by_name) or _classified_output(
            metadata.get(CLASSES_KEY), self.output_by_name
        )
        self.cuda: CudaReport | None = None
        self.batching = Batching(batched=False, decided_by="proof", verdict="unknown", reason="the model is loading")
        self.runner: Runner = host_runner(self.session.ort, tuple(self.input_by_name.values()), self.outputs)
        self.batching = find_batching(
            prove(path),
            self.inputs,
            self.outputs,
            batching,
            self.random_feeds,
            lambda feeds: self.run(feeds, self.output_names).arrays,
        )
        if not self.batched:
            surprising = self.batching.decided_by == "trial"
            log.log(
                logging.WARNING if surprising else logging.INFO,
                "model %s version %s is not batched: %s%s",
                name,
                version,
                self.batching.reason,
                f" ({self.batching.op_type})" if self.batching.op_type else "",
            )
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
    def columns(self) -> list[Column] | None:
        """The columns of the only input, from the card; None if it names none, or they do not match the graph."""
        return _fitting_columns(self.card, self.signature)

    @property
    def output_labels(self) -> dict[str, list[str]]:
        """The labels of each output that has labels in the card."""
        return {output.name: output.labels for output in (self.card.outputs if self.card else ()) if output.labels}

    @property
    def batched(self) -> bool:
        """Whether rows of several requests may run together."""
        return self.batching.batched

    @property
    def num_threads(self) -> int:
        """Threads of the runtime's pool."""
        return self.session.num_threads

    @property
    def providers(self) -> list[str]:
        """Execution providers, as read back from the session."""
        return self.session.providers

    @property
    def provider(self) -> str:
        """The first execution provider."""
        return self.session.providers[0]

    @property
    def device_reason(self) -> str | None:
        """The reason why it runs on the CPU although ``auto`` prefers CUDA, or None."""
        return self.session.device_reason

    @property
    def placement(self) -> tuple[Node, ...] | None:
        """Which provider runs which node; None if this onnxruntime does not report it."""
        return self.session.placement

    @property
    def gathers(self) -> bool:
        """Whether ``run`` accepts the arrays of several requests as lists."""
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

    def random_feeds(self, rows: int, axes: Axes | None = None) -> dict[str, Array]:
        """Random inputs with a fixed seed, for trial runs; see ``random_feeds``.

        Args:
            rows: Number of rows.
            axes: The axis of the rows in each input; by default the axes of ``batching``.

        Raises:
            LoadError: Inputs of these shapes cannot be made.
        """
        try:
            return random_feeds(self.inputs, rows, axes or (self.batching.input_axes if self.batched else None))
        except (MemoryError, OverflowError, ValueError) as error:
            shapes = ", ".join(f"{spec.name!r} {spec.readable_shape}" for spec in self.inputs)
            raise LoadError(
                f"model {self.name!r} version {self.version}: cannot make random inputs of the shapes {shapes}: {error}"
            ) from None

    def stop_batching(self, reason: str) -> None:
        """Stop batching, because a run has shown that rows are not independent."""
        if self.batched:
            self.batching = replace(self.batching, batched=False, decided_by="run", reason=reason)
            log.error("batching is off for model %s version %s: %s", self.name, self.version, reason)

    def prepare(self, max_rows: int) -> None:
        """On CUDA, allocate buffers and capture graphs for batches of up to ``max_rows``; on the CPU, do nothing."""
        if self.provider != CUDA:
            return
        started = time.perf_counter()
        device = self.session.device
        host = host_runner(self.session.ort, self.inputs, self.outputs)
        target = None
        if device.runtime is not None and self.session.stream is not None:
            target = CudaTarget(device.runtime, device.cuda.device_id, self.session.stream, device.bodies)
        rows = max_rows if self.batched and self.batching.rows_first else None
        self.cuda, runner = accelerate(self.session.ort, self.signature, rows, device, target, self.random_feeds, host)
        if runner is not None:
            self.runner = runner
        if device.cuda.tf32:
            self.cuda.tf32_max_relative_error = self._tf32_error(min(max_rows, _TF32_ROWS))
        self.load_duration_s += time.perf_counter() - started
        log.info(
            "model %s version %s runs on CUDA device %d in the mode %s%s",
            self.name,
            self.version,
            self.cuda.device_id,
            self.cuda.mode,
            f": {self.cuda.reason}" if self.cuda.reason else "",
        )

    def _tf32_error(self, rows: int) -> float:
        """Largest relative error of an output compared with a session without TF32, on random rows."""
        device, choices = self.session.device.without_tf32(), self.session.choices
        session, _ = open_session(str(self.path), device, self.num_threads, choices=choices)
        exact = host_runner(session, self.inputs, self.outputs)
        feeds = self.random_feeds(rows)
        found = self.run(feeds, self.output_names).arrays
        expected = exact.run(feeds, self.output_names).arrays
        return max(relative_error(*arrays) for arrays in zip(found, expected, self.outputs, strict=True))


def _read_card(text: str | None, model: str) -> tuple[Card | None, str | None]:
    """The card in a file, and the reason why it is unusable or wrong."""
    if text is None:
        return None, None
    try:
        card = parse_card(text)
    except CardError as error:
        log.warning("%s is served without its invalid card: %s", model, error)
        return None, str(error)
    problems = card.contradictions()
    if problems:
        log.warning("the card of %s is inconsistent: %s", model, problems[0])
    return card, "; ".join(problems) or None


def _labelled_output(card: Card | None, output_by_name: Mapping[str, TensorSpec]) -> Output | None:
    for output in card.outputs if card else ():
        spec = output_by_name.get(output.name)
        if output.labels is None or output.kind not in ("logits", "probabilities") or spec is None:
            # with several labels per row, or numbers that are not scores, no label is the most likely
            continue
        if len(spec.shape) == 2 and spec.shape[1] == len(output.labels) and spec.datatype.startswith("FP"):
            return output
        log.warning("the %d labels of output %s do not match its shape", len(output.labels), output.name)
    return None


def _fitting_columns(card: Card | None, signature: Signature) -> list[Column] | None:
    inputs = signature.inputs
    if card is None or len(inputs) != 1 or len(inputs[0].shape) != 2 or inputs[0].datatype == "BYTES":
        return None
    for described in card.inputs:
        if described.name == inputs[0].name and described.columns:
            return described.columns if inputs[0].shape[1] in (None, len(described.columns)) else None
    return None


def _classified_output(classes: str | None, output_by_name: Mapping[str, TensorSpec]) -> Output | None:
    """The probabilities of a classifier that ended in a ``ZipMap``, with the names of its classes."""
    for name, labels in class_names(classes).items():
        if name in output_by_name:
            return Output(name=name, kind="probabilities", labels=labels)
    return None


def _file_bytes(path: Path) -> int:
    """Size on disk: the file and the external data that it names, not other files beside it."""
    parts = {path, *(file.resolve() for file in external_paths(path).values())}
    return sum(part.stat().st_size for part in parts)


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
