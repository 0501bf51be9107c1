"""Calling a model with a batch, and reading its outputs."""

from __future__ import annotations

import contextlib
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from panther.convert.errors import ConversionError

Forward = Callable[[nn.Module, Any], Any]

# keys of a batch for the loss, not for the forward pass
_TARGETS = frozenset({"label", "labels"})


def batches_of(calibration: Any, argument: str = "calibration") -> list[Any]:
    """A list of the batches in a loader, an iterable, or a single tensor or mapping.

    Raises:
        ConversionError: there are none, or it can't be iterated over.
    """
    if isinstance(calibration, Tensor | Mapping | PackedSequence):
        return [calibration]
    if not isinstance(calibration, Iterable):
        raise ConversionError(
            f"{argument} ({type(calibration).__name__}) must be a tensor, a dict of tensors, or an iterable of batches"
        )
    batches = list(calibration)
    if not batches:
        raise ConversionError(f"{argument} holds no batch; give a few hundred typical rows")
    return batches


def check_batches(batches: Iterable[Any], model: nn.Module, forward: Forward | None, argument: str) -> None:
    """Refuse batches that no model can be called with, and empty ones.

    Raises:
        ConversionError: names the batch and its type.
    """
    for number, batch in enumerate(batches):
        at = f"{argument}: batch {number} ({described(batch)})"
        tensors = list(tensors_of(batch))
        if tensors and all(tensor.dim() > 0 and tensor.shape[0] == 0 for tensor in tensors):
            raise ConversionError(f"{at} is empty: it has no rows")
        if forward is not None:
            continue
        if type(batch).__module__.partition(".")[0] == "numpy":
            raise ConversionError(f"{at} is not a tensor; convert it with torch.from_numpy")
        if batch is None or isinstance(batch, str | bytes | int | float | complex):
            raise ConversionError(f"{at} is not an input of a model; give tensors, or dicts, tuples or lists of them")
        if isinstance(batch, Mapping):
            parameters = parameters_of(model)
            any_name = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
            if not any_name and not batch.keys() & parameters.keys():
                raise ConversionError(
                    f"{at} holds no argument of {type(model).__name__}.forward, which takes {', '.join(parameters)}"
                )
        elif isinstance(batch, tuple | list) and not batch:
            raise ConversionError(f"{at} is empty")


def run(model: nn.Module, batch: Any, forward: Forward | None, at: str) -> Any:
    """`call`, with an error that says which batch the model failed on.

    Raises:
        ConversionError: the model raised an error, which is its cause.
    """
    try:
        return call(model, batch, forward)
    except ConversionError:
        raise
    except Exception as error:
        text = str(error).strip().splitlines()
        raise ConversionError(
            f"{at} ({described(batch)}) can't be run by {type(model).__name__}: "
            f"{type(error).__name__}: {text[0] if text else ''}"
        ) from error


def described(batch: Any) -> str:
    """A batch in a few words: its type, and shapes and types of its tensors."""
    if isinstance(batch, Tensor):
        return f"tensor {tuple(batch.shape)} {str(batch.dtype).removeprefix('torch.')}"
    if isinstance(batch, Mapping):
        inner = ", ".join(f"{key}: {described(value)}" for key, value in list(batch.items())[:4])
        return f"{type(batch).__name__} of {inner or 'nothing'}"
    if isinstance(batch, tuple | list) and not isinstance(batch, PackedSequence):
        return f"{type(batch).__name__} of {', '.join(map(described, batch[:4])) or 'nothing'}"
    return type(batch).__name__


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
    positional, named = arguments_of(model, batch)
    return model(*positional, **named)


def arguments_of(model: nn.Module, batch: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and named arguments that `call` passes to a model."""
    if isinstance(batch, Mapping):
        parameters = parameters_of(model)
        any_name = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
        return (), {
            key: value for key, value in batch.items() if key not in _TARGETS and (any_name or key in parameters)
        }
    if isinstance(batch, tuple | list) and not isinstance(batch, PackedSequence):
        return tuple(batch[: max(1, _required(model))]), {}
    return (batch,), {}


def parameters_of(model: nn.Module) -> Mapping[str, inspect.Parameter]:
    """Parameters of a model's forward, or of the inner module that a wrapper passes all its arguments to.

    Such wrappers are DistributedDataParallel, DataParallel, AveragedModel, and what torch.compile returns.
    """
    parameters = inspect.signature(model.forward).parameters
    if all(parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD) for parameter in parameters.values()):
        for attribute in ("module", "_orig_mod"):
            inner = model._modules.get(attribute)
            if inner is not None:
                return parameters_of(inner)
    return parameters


def outputs_of(result: Any, batch: Any = None) -> list[tuple[Tensor, Tensor | None]]:
    """The floating-point tensors in a model's result, scalars left out, each with the mask of its rows that count.

    Where the batch holds an ``attention_mask`` that has the shape of an output's leading axes (the convention of
    transformers), rows of padding do not count.
    """
    mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None
    found = []
    for tensor in tensors_of(result):
        if tensor.is_floating_point() and tensor.dim() > 0:
            of_rows = isinstance(mask, Tensor) and tensor.dim() > mask.dim() == 2 and tensor.shape[:2] == mask.shape
            found.append((tensor, mask.to(tensor.device).bool() if mask is not None and of_rows else None))
    return found


def check_differentiable(model: nn.Module) -> None:
    """Refuse a model with parameters of inference mode, which have no derivatives.

    Raises:
        ConversionError: a parameter was made under torch.inference_mode.
    """
    for name, parameter in model.named_parameters():
        if not _uninitialised(parameter) and parameter.is_inference():
            raise ConversionError(
                f"{name} was created under torch.inference_mode and has no derivatives; "
                "create or load the model outside of it"
            )


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model as its owner runs it for inference: in eval mode, its parameters frozen, and not compiled."""
    modes = [(module, module.training) for module in model.modules()]
    frozen = [
        parameter
        for parameter in model.parameters()
        if parameter.requires_grad and not (_uninitialised(parameter) or parameter.is_inference())
    ]
    try:
        model.eval()
        for parameter in frozen:
            parameter.requires_grad_(False)  # noqa: FBT003
        with _uncompiled():
            yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)  # noqa: FBT003
        for module, training in modes:
            module.training = training


def _uncompiled() -> contextlib.AbstractContextManager[Any]:
    """Run compiled modules eagerly."""
    if "torch._dynamo" not in sys.modules:
        # import only if something is compiled: it takes a second
        return contextlib.nullcontext()
    eager: contextlib.AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return eager


def _uninitialised(parameter: nn.Parameter) -> bool:
    return isinstance(parameter, nn.parameter.UninitializedParameter)


def _required(model: nn.Module) -> int:
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(
        parameter.kind in kinds and parameter.default is parameter.empty for parameter in parameters_of(model).values()
    )


def _moved(batch: Any, device: torch.device | None) -> Any:
    if isinstance(batch, Tensor):
        # a copy: the model may write to its input, which belongs to the caller and may have a graph, and a tensor of
        # inference mode can't be saved for the backward pass
        return batch.detach().clone().to(device)
    if isinstance(batch, PackedSequence):
        # packed lengths must stay on the CPU
        return batch if device is None else batch.to(device)  # type: ignore[arg-type]
    if isinstance(batch, Mapping):
        return {key: _moved(value, device) for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(_moved(value, device) for value in batch))
    if isinstance(batch, tuple | list):
        moved = [_moved(value, device) for value in batch]
        return moved if isinstance(batch, list) else tuple(moved)
    return batch


def tensors_of(result: Any) -> Iterator[Tensor]:
    """Tensors in a batch or a result, within dicts, tuples and lists too."""
    if isinstance(result, Tensor):
        yield result
    elif isinstance(result, Mapping):
        for value in result.values():
            yield from tensors_of(value)
    elif isinstance(result, tuple | list):
        for value in result:
            yield from tensors_of(value)
