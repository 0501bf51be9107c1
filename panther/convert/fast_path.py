"""torch's fast path of nn.TransformerEncoder, which writes zeros at padded places, and how a conversion keeps them.

In eval mode and without gradients, nn.TransformerEncoder takes a padding mask by nested tensors and fills padded
places with zeros (before its final norm). The fused kernels read dense weights, so that a converted encoder has to run
layer by layer, which leaves other values there; mean pooling, say, would see them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from panther.nn.kernels.compiled import by_torch_compile
from panther.nn.kernels.private_names import is_exporting

# number of open `observing` contexts: gradients are on in them, and the model computes as without them
_observers = 0


def takes_nested_path(encoder: nn.TransformerEncoder) -> bool:
    """Whether the encoder writes zeros at padded places when it runs without gradients in eval mode."""
    plain = type(encoder).forward is nn.TransformerEncoder.forward and "forward" not in encoder.__dict__
    nested = bool(getattr(encoder, "use_nested_tensor", False))
    return plain and nested and bool(torch.backends.mha.get_fastpath_enabled())


def keep_zeros(encoder: nn.TransformerEncoder) -> RemovableHandle | None:
    """Make an encoder write the zeros of the fast path without taking it; None if it already does."""
    if zeros_at_padding in encoder._forward_hooks.values():
        return None
    return encoder.register_forward_hook(zeros_at_padding, with_kwargs=True)


def zeros_at_padding(
    encoder: nn.TransformerEncoder, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Tensor
) -> Tensor:
    """A forward hook: the output as torch's fast path has it, under the conditions of that path."""
    given = dict(zip(("src", "mask", "src_key_padding_mask", "is_causal"), args, strict=False)) | dict(kwargs)
    src, padding = given["src"], given.get("src_key_padding_mask")
    first: Any = encoder.layers[0]
    if padding is None or given.get("mask") is not None or src.dim() != 3 or first.training:
        return output
    checks = getattr(encoder, "mask_check", True)
    padded = padding if padding.dtype == torch.bool else padding != 0
    if is_exporting():
        # row by row: the result of a row must not depend on the others of its batch
        aligned = ~(padded[:, :-1] & ~padded[:, 1:]).any(1, keepdim=True) if checks else torch.ones_like(padded[:, :1])
        return _fill(encoder, output, padded & aligned)
    if torch.is_autocast_enabled() or (checks and by_torch_compile()):
        return output
    if torch.is_grad_enabled() and not _observers and _learns(first, src):
        return output
    if checks and bool((padded[:, :-1] & ~padded[:, 1:]).any()):
        return output
    return _fill(encoder, output, padded)


def _learns(layer: nn.Module, src: Tensor) -> bool:
    return src.requires_grad or any(parameter.requires_grad for parameter in layer.parameters())


def _fill(encoder: nn.TransformerEncoder, output: Tensor, padded: Tensor) -> Tensor:
    zeros = output.new_zeros(1, 1, output.shape[-1])
    norm = encoder.norm
    return torch.where(padded.unsqueeze(-1), zeros if norm is None else norm(zeros), output)


@contextlib.contextmanager
def observing(*models: nn.Module) -> Iterator[None]:
    """Run models through the forward of their modules, where hooks see it, with the values of the fast path."""
    global _observers  # noqa: PLW0603
    enabled = torch.backends.mha.get_fastpath_enabled()
    encoders = {
        id(module): module
        for model in models
        for module in model.modules()
        if isinstance(module, nn.TransformerEncoder) and takes_nested_path(module)
    }
    handles = [keep_zeros(encoder) for encoder in encoders.values()]
    _observers += 1
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        yield
    finally:
        _observers -= 1
        torch.backends.mha.set_fastpath_enabled(enabled)
        for handle in handles:
            if handle is not None:
                handle.remove()
