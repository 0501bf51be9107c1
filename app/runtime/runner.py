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
    """The outputs of one run, and its times beside those of the model.

    Attributes:
        arrays: the outputs, in the order of the names that were asked for.
        input_ns: time to copy the inputs to a device; 0 on the CPU.
        output_ns: time to copy the outputs from there; 0 on the CPU.
        meanwhile_ns: by how much the run took longer because of the work done meanwhile.
    """

    arrays: list[Array]
    input_ns: int = 0
    output_ns: int = 0
    meanwhile_ns: int = 0


class Runner(Protocol):
    """Runs one model from arrays of the host.

    Attributes:
        gathers: whether a feed may be a list of arrays, which the runner concatenates itself.
    """

    @property
    def gathers(self) -> bool:
        """Whether the runner concatenates requests itself; see above."""
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
            feeds: input name to array; to a list of arrays where the runner gathers.
            output_names: outputs to compute, in order.
            options: of this run; setting its ``terminate`` stops the run between two nodes.
            meanwhile: called while a device is at work, or not at all.
        """
        ...
