"""Batch sizes on CUDA, and how a batch of each size is run."""

from dataclasses import dataclass
from typing import Any


def batch_sizes(max_rows: int) -> tuple[int, ...]:
    """The sizes that batches are padded to: powers of two, and the maximum."""
    sizes = []
    size = 1
    while size < max_rows:
        sizes.append(size)
        size *= 2
    return (*sizes, max_rows)


def size_index(rows: int) -> int:
    """Which of the ``batch_sizes`` is the smallest that holds so many rows."""
    return (rows - 1).bit_length()


@dataclass(slots=True)
class SizePlan:
    """How a batch of one size is run.

    Attributes:
        rows: that batches are padded to.
        index: of this size.
        large: whether its tensors are copied piece by piece, and not within the graph.
        binding: of onnxruntime, over the buffers.
        run_as: index of the size that its batches are run at: this one, or a larger one that is faster.
        graph: the CUDA graph; None where it runs node by node.
        copy_ns: what each way of copying takes within the graph.
    """

    rows: int
    index: int
    large: bool
    binding: Any
    run_as: int
    graph: int | None = None
    copy_ns: int = 0

    def forget_graph(self) -> None:
        """Return to running node by node."""
        self.graph = None
        self.run_as = self.index
        self.copy_ns = 0
