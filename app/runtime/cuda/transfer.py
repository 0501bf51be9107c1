"""Copies of large inputs to the device: directly from pinned bodies, otherwise in pieces through a buffer."""

from collections.abc import Iterator

import numpy as np

from app.runtime.cuda.buffers import Buffer, CudaTarget
from app.runtime.cuda.cudart import HOST_TO_DEVICE
from app.runtime.runner import Parts
from app.runtime.tensors import Array

_CHUNK_BYTES = 512 * 1024
_LAST_CHUNK_BYTES = 64 * 1024


def send(target: CudaTarget, item: Buffer, parts: Parts) -> None:
    """Queue the copies of one batched input.

    Rows in pinned request bodies are copied from there. Of other rows, each piece is copied to the device while the
    host writes the next one into pinned memory.

    Args:
        target: The device and stream.
        item: Buffer of the input.
        parts: Its rows, of one or several requests.
    """
    runtime, bodies = target.runtime, target.bodies
    done = 0
    elsewhere: list[Array] = []  # parts that must be copied to pinned memory first
    for part in parts if isinstance(parts, list) else [parts]:
        address = None if bodies is None else bodies.address(part)
        if address is None:
            elsewhere.append(part)
            continue
        done = _stage(target, item, elsewhere, done)
        elsewhere = []
        runtime.copy(item.device + done * item.row_bytes, address, part.nbytes, HOST_TO_DEVICE, target.stream)
        done += len(part)
    _stage(target, item, elsewhere, done)


def _stage(target: CudaTarget, item: Buffer, parts: list[Array], done: int) -> int:
    """Queue copies through the buffer's pinned memory, starting at a row. Return the row after the last one."""
    if not parts:
        return done
    for piece, size in pieces(parts if len(parts) > 1 else parts[0], item.row_bytes):
        if isinstance(piece, list):
            np.concatenate(piece, out=item.array[done : done + size])
        else:
            item.array[done : done + size] = piece
        offset = done * item.row_bytes
        target.runtime.copy(
            item.device + offset, item.pinned + offset, size * item.row_bytes, HOST_TO_DEVICE, target.stream
        )
        done += size
    return done


def joined(parts: Parts) -> Array:
    """The rows of several requests in one array."""
    return np.concatenate(parts) if isinstance(parts, list) else parts


def row_count(parts: Parts) -> int:
    """Rows of one request or of several."""
    return sum(map(len, parts)) if isinstance(parts, list) else len(parts)


def piece_rows(left: int, row_bytes: int) -> int:
    """Number of rows in the next piece: smaller towards the end, where no other work hides the copy."""
    wanted = min(_CHUNK_BYTES, max(_LAST_CHUNK_BYTES, left * row_bytes // 2))
    return max(1, min(left, wanted // row_bytes))


def pieces(parts: Parts, row_bytes: int) -> Iterator[tuple[Parts, int]]:
    """Cut or concatenate rows into pieces, each with its number of rows."""
    rows = row_count(parts)
    done = 0
    if not isinstance(parts, list):
        while done < rows:
            size = piece_rows(rows - done, row_bytes)
            yield parts[done : done + size], size
            done += size
        return
    group: list[Array] = []
    size = 0
    for part in parts:
        group.append(part)
        size += len(part)
        if size >= piece_rows(rows - done, row_bytes):
            yield group, size
            done += size
            group, size = [], 0
    if group:
        yield group, size
