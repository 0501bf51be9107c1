"""Storage of layers' factors until ranks are chosen: on the device, in CPU memory, or in temporary files."""

from __future__ import annotations

import os
import tempfile

import torch
from torch import Tensor

from panther.convert.errors import ConversionError


class Keeper:
    """Keeps tensors on their device, or moves them off it.

    Args:
        spilled: move tensors of an accelerator to CPU memory, and those of the CPU to temporary files (in the folder
            of `tempfile.gettempdir`), which are removed with the tensors.
    """

    def __init__(self, *, spilled: bool = False) -> None:
        self.spilled = spilled

    def keep(self, tensor: Tensor) -> Tensor:
        """The tensor with a storage of its size.

        Raises:
            ConversionError: the disk is full.
        """
        if tensor.dim() == 2 and tensor.t().is_contiguous():
            return self._keep(tensor.t()).t()
        return self._keep(tensor.contiguous())

    def _keep(self, tensor: Tensor) -> Tensor:
        if not self.spilled or not tensor.numel():
            whole = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
            return tensor if whole else tensor.clone()
        return _mapped(tensor) if tensor.device.type == "cpu" else tensor.cpu()


def _mapped(tensor: Tensor) -> Tensor:
    """A copy in a file without a name, whose pages the system writes out when memory runs short."""
    try:
        with tempfile.NamedTemporaryFile(prefix="panther-") as file:
            # reserve the blocks now: a write to a mapping can't report a full disk
            os.posix_fallocate(file.fileno(), 0, tensor.numel() * tensor.element_size())
            mapped = torch.from_file(file.name, shared=True, size=tensor.numel(), dtype=tensor.dtype)
    except OSError as error:
        raise ConversionError(
            f"factors of {tensor.numel() * tensor.element_size():,} bytes can't be kept in {tempfile.gettempdir()}: "
            f"{error.strerror}; set TMPDIR to a folder with more space, or raise memory"
        ) from error
    return mapped.view(tensor.shape).copy_(tensor)
