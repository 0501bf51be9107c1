"""A run on a thread of a model."""

import time
from dataclasses import dataclass, field

import onnxruntime as ort

from app.engine.queue import QueueEntry


@dataclass(slots=True)
class ThreadRun:
    """A batch on a thread; setting ``terminate`` of its options stops the run."""

    batch: list[QueueEntry]
    options: ort.RunOptions = field(default_factory=ort.RunOptions)
    began_ns: int = field(default_factory=time.perf_counter_ns)

    @property
    def running_s(self) -> float:
        """Seconds since the start of the run."""
        return (time.perf_counter_ns() - self.began_ns) / 1e9
