"""`panther export`: a module from the user's code, a checkpoint, and example inputs given as text."""

from __future__ import annotations

import importlib
import pickle
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from panther.export.errors import ExportError, first_line

# sizes of a dynamic axis in the example inputs: two different ones, so that the axis is not taken as fixed
_EXAMPLE_SIZES = (4, 6, 10, 14)
# most differences between a checkpoint and a model that are printed
_LONGEST, _MOST_LINES = 200, 4
_SPEC = re.compile(r"(?P<name>[A-Za-z_]\w*):(?P<dtype>\w+)\[(?P<shape>[^\]]*)\]")
_DTYPES = {
    name: getattr(torch, name) for name in ("float32", "float64", "float16", "int64", "int32", "int8", "uint8", "bool")
}


@dataclass(frozen=True)
class InputSpec:
    """An input as the user writes it: NAME:DTYPE[SIZE or AXIS NAME, ...]."""

    name: str
    dtype: torch.dtype
    shape: tuple[int | str, ...]

    @classmethod
    def parse(cls, text: str) -> InputSpec:
        """Read a specification such as ``x:float32[batch,784]``.

        Raises:
            ValueError: it is malformed.
        """
        match = _SPEC.fullmatch(text.replace(" ", ""))
        if match is None:
            raise ValueError(f"input {text!r} must be NAME:DTYPE[SIZE,...], for example 'x:float32[batch,784]'")
        if match["dtype"] not in _DTYPES:
            raise ValueError(f"input {text!r}: type {match['dtype']!r} must be one of {', '.join(_DTYPES)}")
        shape: list[int | str] = []
        for size in filter(None, match["shape"].split(",")):
            if size.isdecimal() and int(size) > 0:
                shape.append(int(size))
            elif size.isidentifier():
                shape.append(size)
            else:
                raise ValueError(f"input {text!r}: {size!r} must be a positive size or the name of a variable axis")
        return cls(match["name"], _DTYPES[match["dtype"]], tuple(shape))

    @property
    def dynamic_axes(self) -> dict[int, str]:
        """The axes of variable size and their names."""
        return {axis: size for axis, size in enumerate(self.shape) if isinstance(size, str)}


def load_model(factory: str, checkpoint: Path | None) -> nn.Module:
    """Build a model by MODULE:FACTORY and load its weights.

    Args:
        factory: a module that can be imported from the current folder, and a callable in it that takes no arguments
            and returns the model.
        checkpoint: weights: ``.safetensors``, or a file of ``torch.save`` that holds a state_dict; none when None.

    Raises:
        ExportError: a part is missing or can't be read.
    """
    build = load_function(factory, "model", "MODULE:FACTORY, for example 'mynet:build'")
    try:
        model = build()
    except Exception as error:
        raise ExportError(f"{factory} failed: {type(error).__name__}: {first_line(error)}") from error
    if not isinstance(model, nn.Module):
        raise ExportError(f"{factory} returned {type(model).__name__}; a torch.nn.Module is needed")
    if checkpoint is not None:
        load_weights(model, checkpoint)
    return model


def load_function(path: str, argument: str, form: str) -> Callable[..., Any]:
    """Find MODULE:FUNCTION of the user's code, importable from the current folder.

    Args:
        path: module and function.
        argument, form: name and form of the option, for errors.

    Raises:
        ExportError: it isn't there, or is a model.
    """
    module_name, colon, attribute = path.partition(":")
    if not (module_name and colon and attribute):
        raise ExportError(f"{argument} {path!r} must be {form}")
    sys.path.insert(0, str(Path.cwd()))
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise ExportError(f"cannot import {module_name!r}: {type(error).__name__}: {first_line(error)}") from error
    finally:
        sys.path.pop(0)
    found = getattr(module, attribute, None)
    if isinstance(found, nn.Module):
        raise ExportError(f"{path} is a model, not a function that returns one; name a function")
    if not callable(found):
        raise ExportError(f"module {module_name!r} has no callable {attribute!r}")
    function: Callable[..., Any] = found
    return function


def load_weights(model: nn.Module, checkpoint: Path) -> None:
    """Load a checkpoint strictly.

    Raises:
        ExportError: the file can't be read or does not fit the model.
    """
    try:
        if checkpoint.suffix == ".safetensors":
            import panther

            # also accepts the output of 'panther compress': layers become sketched where the file's are
            panther.restore_(model, checkpoint)
            return
        state = torch.load(checkpoint, map_location="cpu", weights_only=True)
        model.load_state_dict(state)
    except FileNotFoundError:
        raise ExportError(f"checkpoint {checkpoint} does not exist") from None
    except pickle.UnpicklingError as error:
        raise ExportError(
            f"checkpoint {checkpoint} cannot be loaded into {type(model).__name__}: it is damaged, or holds other "
            "objects than tensors, such as a whole model; write it with torch.save(model.state_dict(), ...)"
        ) from error
    except Exception as error:
        raise ExportError(
            f"checkpoint {checkpoint} cannot be loaded into {type(model).__name__}: {_differences(error)}"
        ) from error


def check_output(out: Path, or_else: str = "") -> None:
    """Check that a model can be exported there: to a path ending in ``.onnx``, or into the folder of a repository.

    Args:
        out: the path.
        or_else: what it may be instead, for the error.

    Raises:
        ValueError: it has another suffix.
    """
    if out.suffix not in ("", ".onnx") and not out.is_dir():
        raise ValueError(f"out ({out}) must end in .onnx or be the folder of a model repository{or_else}")


def _differences(error: Exception) -> str:
    """The differences that load_state_dict reports, without its heading."""
    heading, *lines = str(error).splitlines() or [""]
    found = [line.strip().rstrip(".") for line in lines if line.strip()]
    if not (heading.startswith("Error(s) in loading") and found):
        return first_line(error)
    shown = [line if len(line) <= _LONGEST else f"{line[:_LONGEST]}..." for line in found[:_MOST_LINES]]
    return "; ".join(shown) + (f"; and {len(found) - _MOST_LINES} more" if len(found) > _MOST_LINES else "")


def example_tensors(specs: Sequence[InputSpec], data: Path | None, seed: int = 0) -> dict[str, Tensor]:
    """Example inputs: from an .npz file with an array for each input, or random ones of the specified shapes.

    Raises:
        ExportError: the file lacks an input, or an array has another shape than was specified.
    """
    sizes = _axis_sizes(specs)
    if data is None:
        generator = torch.Generator().manual_seed(seed)
        return {spec.name: _random(spec, sizes, generator) for spec in specs}
    try:
        with np.load(data, allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in archive.files}
    except Exception as error:
        raise ExportError(f"{data} cannot be read as an .npz file: {first_line(error)}") from error
    result = {}
    for spec in specs:
        if spec.name not in arrays:
            raise ExportError(f"{data} holds the arrays {sorted(arrays)}; input {spec.name!r} is missing")
        shape = arrays[spec.name].shape
        if len(shape) != len(spec.shape) or any(
            isinstance(size, int) and size != found for size, found in zip(spec.shape, shape, strict=True)
        ):
            raise ExportError(f"{data}: {spec.name!r} has shape {shape}; specified is {list(spec.shape)}")
        result[spec.name] = torch.from_numpy(arrays[spec.name]).to(spec.dtype)
    return result


def _axis_sizes(specs: Sequence[InputSpec]) -> dict[str, int]:
    names = dict.fromkeys(size for spec in specs for size in spec.shape if isinstance(size, str))
    return {name: _EXAMPLE_SIZES[index % len(_EXAMPLE_SIZES)] for index, name in enumerate(names)}


def _random(spec: InputSpec, sizes: Mapping[str, int], generator: torch.Generator) -> Tensor:
    shape = [sizes[size] if isinstance(size, str) else size for size in spec.shape]
    if spec.dtype.is_floating_point:
        return torch.randn(shape, generator=generator).to(spec.dtype)
    # small enough for any vocabulary
    return torch.randint(0, 2, shape, generator=generator).to(spec.dtype)
