"""A loaded model file: tensors, card and runner."""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import onnxruntime as ort

from app.errors import CardError, LoadError, without_folders
from app.runtime.batching import Axes, Batching, Wanted, find_batching
from app.runtime.card import METADATA_KEY, Card, Column, Output, parse_card
from app.runtime.cuda.accelerate import CudaReport
from app.runtime.device import CUDA, Device
from app.runtime.external_data import external_paths
from app.runtime.graph_tensors import graph_tensors
from app.runtime.independence import prove
from app.runtime.instance import ModelInstance
from app.runtime.placement import Node
from app.runtime.random_feeds import random_feeds
from app.runtime.recognition import why_no_model
from app.runtime.rewriting import CLASSES_KEY, class_names
from app.runtime.runner import Meanwhile, Parts, RunResult
from app.runtime.session import Session
from app.runtime.session_choices import AS_IT_COMES, SessionChoices
from app.runtime.signature import HasSignature, Signature
from app.runtime.tensors import Array, TensorSpec

log = logging.getLogger(__name__)
# onnxruntime's kernels of these operators crash the process on empty tensors.
_NEVER_EMPTY = {"AttnLSTM", "DynamicQuantizeLSTM", "GRU", "LSTM", "Scan"}


class OnnxModel(HasSignature):
    """A version of a model, ready to run.

    Attributes:
        file_bytes: Size on disk, including external data.
        instances: Sessions that run the model; the first one also runs trials and comparisons.
        signature: Its tensors, which are also properties of the model.
        takes_empty: Whether inputs without elements may be run.
        takes_no_rows: Whether a batch without rows may be run, as found by a trial run.
        card: The model card in the file, or None.
        card_problem: The reason why the card is unusable or wrong, or None.
        labelled: The output with labels for its last axis in the card, or None.
        batching: Whether and along which axes rows of several requests may run together, and why.
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
            session = Session(path, device, num_threads, choices)
            tensors = graph_tensors(session.ort, path)
            optional = () if CUDA in session.providers else tensors.optional
            self.signature = Signature(tensors.inputs, tensors.outputs, optional)
            metadata: Mapping[str, str] = session.ort.get_modelmeta().custom_metadata_map
        except LoadError:
            raise
        except Exception as error:  # onnxruntime raises many kinds
            message = why_no_model(path) or without_folders(str(error).replace(str(path), path.name))
            raise LoadError(f"model {name!r} version {version}: {message}") from error
        self.instances = [ModelInstance(name, session, self.signature)]
        self.takes_no_rows = False
        self.file_bytes = _file_bytes(path)
        self.takes_empty = not any(node.op_type in _NEVER_EMPTY for node in self.session.placement or ())
        self.card, self.card_problem = _read_card(metadata.get(METADATA_KEY), f"model {name} version {version}")
        self.labelled = _labelled_output(self.card, self.output_by_name) or _classified_output(
            metadata.get(CLASSES_KEY), self.output_by_name
        )
        self.batching = Batching(batched=False, decided_by="proof", verdict="unknown", reason="the model is loading")
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
    def session(self) -> Session:
        """The session of the first instance."""
        return self.instances[0].session

    @property
    def cuda(self) -> CudaReport | None:
        """The way the first instance runs on CUDA, or None on another provider."""
        return self.instances[0].cuda

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
        """Whether ``run`` takes the arrays of several requests as lists."""
        return self.instances[0].gathers

    def run(
        self,
        feeds: Mapping[str, Parts],
        output_names: Sequence[str],
        options: ort.RunOptions | None = None,
        meanwhile: Meanwhile | None = None,
    ) -> RunResult:
        """Run the graph on the first instance; see ``ModelInstance.run``."""
        return self.instances[0].run(feeds, output_names, options, meanwhile)

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

    def add_instance(self, device: Device) -> None:
        """Open another session of the model, on the same or another device.

        Raises:
            DeviceError: See ``open_session``.
        """
        first = self.session
        session = Session(self.path, device, first.num_threads, first.choices)
        self.instances.append(ModelInstance(self.name, session, self.signature))

    def prepare(self, max_rows: int) -> None:
        """On CUDA, allocate buffers and capture graphs for batches of up to so many rows; on the CPU, do nothing."""
        started = time.perf_counter()
        rows = max_rows if self.batched and self.batching.rows_first else None
        for instance in self.instances:
            instance.prepare(self.path, max_rows, rows, self.random_feeds)
            if instance.cuda is not None:
                log.info(
                    "model %s version %s runs on CUDA device %d in the mode %s%s",
                    self.name,
                    self.version,
                    instance.cuda.device_id,
                    instance.cuda.mode,
                    f": {instance.cuda.reason}" if instance.cuda.reason else "",
                )
        self.load_duration_s += time.perf_counter() - started


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
