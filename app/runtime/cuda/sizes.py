"""Batch sizes on CUDA, and the way to run a batch of each size."""

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
    """Index of the smallest of the ``batch_sizes`` that holds a number of rows."""
    return (rows - 1).bit_length()


@dataclass(slots=True)
class SizePlan:
    """The way to run a batch of one size.

    Attributes:
        rows: Number of rows that batches are padded to.
        index: Index of this size.
        large: Whether its tensors are copied piece by piece instead of within the graph.
        binding: IO binding of onnxruntime over the buffers.
        run_as: Index of the size at which its batches run: this one, or a larger and faster one.
        graph: The CUDA graph; None if it runs node by node.
        copy_ns: Duration of each copy direction within the graph.
    """

    rows: int
    index: int
    large: bool
    binding: Any
    run_as: int
    graph: int | None = None
    copy_ns: int = 0

    def forget_graph(self) -> None:
        """Switch back to running node by node."""
        self.graph = None
        self.run_as = self.index
        self.copy_ns = 0
