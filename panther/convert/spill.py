"""Storage of moments and factors until layers are chosen: on the device, in CPU memory, or in temporary files."""

from __future__ import annotations

import contextlib
import os
import tempfile
import weakref
from collections.abc import Iterator
from typing import IO, Protocol

import torch
from torch import Tensor

from panther.convert.errors import ConversionError


class Kept(Protocol):
    """A tensor that a `Keeper` stores."""

    def load(self) -> Tensor:
        """The tensor, on the device that it came from; not to be changed in place."""
        ...


class Keeper:
    """Keeps tensors on their device, or moves them off it.

    `keep` returns a tensor that stays mapped; `store` returns one that takes no memory of the process until it is
    loaded.

    Args:
        spilled: move tensors of an accelerator to CPU memory, and those of the CPU to temporary files (in the folder
            of `tempfile.gettempdir`), which are removed with the tensors.
    """

    def __init__(self, *, spilled: bool = False) -> None:
        self.spilled = spilled
        self._file: _File | None = None

    def keep(self, tensor: Tensor) -> Tensor:
        """The tensor with a storage of its size.

        Raises:
            ConversionError: the disk is full.
        """
        if tensor.dim() == 2 and tensor.t().is_contiguous():
            return self._keep(tensor.t()).t()
        return self._keep(tensor.contiguous())

    def store(self, tensor: Tensor) -> Kept:
        """Store a tensor with its values, bit for bit, and the order of its axes.

        Raises:
            ConversionError: the disk is full.
        """
        if not self.spilled or not tensor.numel():
            return _InMemory(self.keep(tensor))
        if tensor.device.type != "cpu":
            return _InMemory(tensor.cpu(), tensor.device)
        if self._file is None:
            self._file = _File()
        return _OnDisk(self._file, tensor)

    def _keep(self, tensor: Tensor) -> Tensor:
        if not self.spilled or not tensor.numel():
            whole = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
            return tensor if whole else tensor.clone()
        return _mapped(tensor) if tensor.device.type == "cpu" else tensor.cpu()


def _mapped(tensor: Tensor) -> Tensor:
    """A copy in a file without a name, whose pages the system writes out when memory runs short."""
    with _reporting_full_disk(tensor.nbytes), tempfile.NamedTemporaryFile(prefix="panther-") as file:
        # reserve the blocks now: a write to a mapping can't report a full disk
        os.posix_fallocate(file.fileno(), 0, tensor.nbytes)
        mapped = torch.from_file(file.name, shared=True, size=tensor.numel(), dtype=tensor.dtype)
    return mapped.view(tensor.shape).copy_(tensor)


class _InMemory:
    """A tensor in the memory of its device, or in that of the CPU."""

    def __init__(self, tensor: Tensor, device: torch.device | None = None) -> None:
        self._tensor, self._device = tensor, tensor.device if device is None else device

    def load(self) -> Tensor:
        """See `Kept.load`."""
        return self._tensor.to(self._device)


class _OnDisk:
    """A tensor in a part of a file."""

    def __init__(self, file: _File, tensor: Tensor) -> None:
        self._turned = tensor.dim() == 2 and tensor.t().is_contiguous() and not tensor.is_contiguous()
        tensor = tensor.t() if self._turned else tensor.contiguous()
        self._file, self._shape, self._dtype = file, tensor.shape, tensor.dtype
        self._start = file.append(_bytes_of(tensor))

    def load(self) -> Tensor:
        """See `Kept.load`."""
        tensor = torch.empty(self._shape, dtype=self._dtype)
        self._file.read(_bytes_of(tensor), self._start)
        return tensor.t() if self._turned else tensor


class _File:
    """A temporary file without a name, which goes with the last tensor in it."""

    def __init__(self) -> None:
        self._file: IO[bytes] = tempfile.TemporaryFile(prefix="panther-", buffering=0)  # noqa: SIM115  closed with self
        weakref.finalize(self, self._file.close)
        self._end = 0

    def append(self, data: memoryview) -> int:
        """Write at the end, and return where."""
        start = self._end
        with _reporting_full_disk(len(data)):
            os.posix_fallocate(self._file.fileno(), start, len(data))
            done = 0
            while done < len(data):
                done += os.pwrite(self._file.fileno(), data[done:], start + done)
        self._end = start + len(data)
        return start

    def read(self, data: memoryview, start: int) -> None:
        """Fill the memory with what is there."""
        done = 0
        while done < len(data):
            found = os.preadv(self._file.fileno(), [data[done:]], start + done)
            if not found:
                raise ConversionError(f"a temporary file in {tempfile.gettempdir()} was truncated")
            done += found


def _bytes_of(tensor: Tensor) -> memoryview:
    return tensor.view(-1).view(torch.uint8).numpy().data


@contextlib.contextmanager
def _reporting_full_disk(size: int) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConversionError(
            f"{size:,} bytes of moments or factors can't be kept in {tempfile.gettempdir()}: "
            f"{error.strerror}; set TMPDIR to a folder with more space, or raise memory"
        ) from error
