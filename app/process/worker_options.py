"""Start options of a worker process, and the exit status and time limit that it shares with its parent."""

from dataclasses import dataclass

from app.config.settings import Settings

START_FAILED = 3
"""Exit status of a worker that would fail again in the same way."""
CUT_S = 2.0
"""Time for a process to end after its time for requests in flight is over."""


@dataclass(frozen=True)
class WorkerOptions:
    """Start options of a worker.

    Attributes:
        settings: Settings of the server.
        slot: Its number among the workers, from 0.
        succeeds: Whether it replaces another worker; it then loads its models before it listens.
        grpc_address: Address for gRPC; None without it.
    """

    settings: Settings
    slot: int
    succeeds: bool
    grpc_address: str | None = None
