"""Numbers for the workers of one server, each held by one of them for as long as it lives."""

import fcntl
import os
from pathlib import Path

_held: list[int] = []


def claim_slot(folder: Path, count: int) -> int:
    """The first number that no living worker holds; the kernel takes it back when the process ends.

    Args:
        folder: where the workers of one server meet.
        count: of the workers; where all their numbers are held, as for a moment when one is replaced, 0 is shared.
    """
    for slot in range(count):
        descriptor = os.open(folder / f"slot-{slot}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            continue
        _held.append(descriptor)
        return slot
    return 0
