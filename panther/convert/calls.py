"""How a model is called with a batch, and what it puts out."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from panther.convert.errors import ConversionError

Forward = Callable[[nn.Module, Any], Any]

# what a batch holds for a loss, not for the forward pass
_TARGETS = frozenset({"label", "labels"})


def batches_of(calibration: Any, argument: str = "calibration") -> list[Any]:
    """A list of the batches in a loader, an iterable, or a single tensor or mapping.

    Raises:
        ConversionError: there are none, or it can't be iterated over.
    """
    if isinstance(calibration, Tensor | Mapping):
        return [calibration]
    if not isinstance(calibration, Iterable):
        raise ConversionError(
            f"{argument} ({type(calibration).__name__}) must be a tensor, a dict of tensors, or an iterable of batches"
        )
    batches = list(calibration)
    if not batches:
        raise ConversionError(f"{argument} holds no batch")
    return batches


def call(model: nn.Module, batch: Any, forward: Forward | None) -> Any:
    """Call a model with a batch, on the device of its parameters.

    A mapping goes in by name, without labels and without what the model's forward does not take; a tuple or list by
    position, as far as the forward takes positional arguments that have no default (the first one at least), so that
    the labels of (x, y) stay out; anything else is the only argument.
    """
    device = next((tensor.device for tensor in (*model.parameters(), *model.buffers())), None)
    batch = _moved(batch, device)
    if forward is not None:
        return forward(model, batch)
    if isinstance(batch, Mapping):
        parameters = inspect.signature(model.forward).parameters
        any_name = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
        return model(
            **{key: value for key, value in batch.items() if key not in _TARGETS and (any_name or key in parameters)}
        )
    if isinstance(batch, tuple | list):
        return model(*batch[: max(1, _required(model))])
    return model(batch)


def outputs_of(result: Any, batch: Any = None) -> list[tuple[Tensor, Tensor | None]]:
    """The floating-point tensors in a model's result, scalars left out, each with the mask of its rows that count.

    Where the batch holds an ``attention_mask`` that has the shape of an output's leading axes (the convention of
    transformers), rows of padding do not count.
    """
    mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None
    found = []
    for tensor in _tensors(result):
        if tensor.is_floating_point() and tensor.dim() > 0:
            of_rows = isinstance(mask, Tensor) and tensor.dim() > mask.dim() == 2 and tensor.shape[:2] == mask.shape
            found.append((tensor, mask.to(tensor.device).bool() if mask is not None and of_rows else None))
    return found


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in eval mode, its parameters frozen, and the fused kernels off that read weights past the modules."""
    modes = [(module, module.training) for module in model.modules()]
    frozen = [
        parameter
        for parameter in model.parameters()
        if parameter.requires_grad and not isinstance(parameter, nn.parameter.UninitializedParameter)
    ]
    fastpath = torch.backends.mha.get_fastpath_enabled()
    try:
        model.eval()
        for parameter in frozen:
            parameter.requires_grad_(False)  # noqa: FBT003
        torch.backends.mha.set_fastpath_enabled(False)
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)
        for parameter in frozen:
            parameter.requires_grad_(True)  # noqa: FBT003
        for module, training in modes:
            module.training = training


def _required(model: nn.Module) -> int:
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(model.forward).parameters.values()
    return sum(parameter.kind in kinds and parameter.default is parameter.empty for parameter in parameters)


def _moved(batch: Any, device: torch.device | None) -> Any:
    if isinstance(batch, Tensor):
        return batch.to(device)
    if isinstance(batch, Mapping):
        return {key: _moved(value, device) for key, value in batch.items()}
    if isinstance(batch, tuple | list):
        return [_moved(value, device) for value in batch]
    return batch


def _tensors(result: Any) -> Iterator[Tensor]:
    if isinstance(result, Tensor):
        yield result
    elif isinstance(result, Mapping):
        for value in result.values():
            yield from _tensors(value)
    elif isinstance(result, tuple | list):
        for value in result:
            yield from _tensors(value)
