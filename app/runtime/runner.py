"""The interface of runners, and the result of one run."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import onnxruntime as ort

from app.runtime.tensors import Array

Parts = Array | list[Array]
"""A tensor, or the tensors of several requests to be concatenated."""
Meanwhile = Callable[[], None]
"""Work for the host while a device is busy."""


@dataclass(slots=True)
class RunResult:
    """The outputs of one run, and the times that do not belong to the model.

    Attributes:
        arrays: The outputs, in the order of the requested names.
        input_ns: Time to copy the inputs to a device; 0 on the CPU.
        output_ns: Time to copy the outputs from a device; 0 on the CPU.
        meanwhile_ns: Extra duration of the run due to the work in ``meanwhile``.
    """

    arrays: list[Array]
    input_ns: int = 0
    output_ns: int = 0
    meanwhile_ns: int = 0


class Runner(Protocol):
    """Runs one model on arrays in host memory.

    Attributes:
        gathers: Whether a feed may be a list of arrays, which the runner concatenates.
    """

    @property
    def gathers(self) -> bool:
        """Whether a feed may be a list of arrays, which the runner concatenates."""
        ...

    def run(
        self,
        feeds: Mapping[str, Parts],
        output_names: Sequence[str],
        options: ort.RunOptions | None = None,
        meanwhile: Meanwhile | None = None,
    ) -> RunResult:
        """Run the graph.

        Args:
            feeds: Input name to array, or to a list of arrays if the runner gathers.
            output_names: Outputs to compute, in order.
            options: Run options; setting ``terminate`` stops the run between two nodes.
            meanwhile: Called while a device is busy, or not at all.
        """
        ...
