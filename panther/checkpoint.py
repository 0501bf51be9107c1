"""Compact checkpoints: safetensors files that store sign matrices at one bit an entry.

A file holds a module's state_dict under its own keys. A fixed matrix of values ±c is stored as ``KEY.signs``, uint8 in
the order of `panther.bits`. The file's metadata holds the shape, type and c of each, the keys that are the same tensor,
and a digest of everything, which detects damage. All other tensors are stored as they are, and a plain safetensors file
of a state_dict loads too.

See docs/decisions/0040-checkpoint-formats.md.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from panther.linalg.sign_bits import pack_signs, sign_magnitude, unpack_signs
from panther.nn import ProgressiveSKLinear, SKConv1d, SKConv2d, SKLinear

FORMAT = "1"
_FORMAT_KEY, _DIGEST_KEY = "panther.format", "panther.digest"
_SIGNS_KEY, _SAME_KEY = "panther.signs", "panther.same"
_SUFFIX = ".signs"
_LAZY = (nn.parameter.UninitializedParameter, nn.parameter.UninitializedBuffer)


class CheckpointError(Exception):
    """The file can't be read or written, is damaged, or does not fit the module."""


def save(model: nn.Module, path: str | Path) -> int:
    """Write a module's state to a compact file, all or nothing.

    Args:
        model: any module; the sign matrices of its sketched layers take one bit an entry.
        path: of the file, by convention ``.safetensors``.

    Returns:
        The bytes written.

    Raises:
        CheckpointError: the state holds something else than strided tensors with values, or the file can't be
            written.
    """
    import safetensors.torch

    path = Path(path)
    signs: dict[str, dict[str, Any]] = {}
    same: dict[str, str] = {}
    stored: dict[str, Tensor] = {}
    seen: dict[tuple[Any, ...], str] = {}
    storages: set[int] = set()
    fixed = _keys_of_fixed_matrices(model)
    for key, value in model.state_dict().items():
        _check_storable(key, value)
        # conjugate and negative views share the address of their base
        bits = (value.is_conj(), value.is_neg())
        identity = (value.data_ptr(), value.shape, value.stride(), value.dtype, *bits) if value.numel() else (key,)
        if identity in seen:
            same[key] = seen[identity]
            continue
        seen[identity] = key
        magnitude = sign_magnitude(value) if key in fixed else None
        if magnitude is None:
            stored[key] = value.detach().cpu().contiguous().resolve_conj().resolve_neg()
            storage = stored[key].untyped_storage().data_ptr()
            if storage in storages:
                # safetensors stores each tensor separately, and refuses overlapping ones
                stored[key] = stored[key].clone()
            storages.add(storage)
        else:
            stored[key + _SUFFIX] = pack_signs(value)
            signs[key] = {"shape": list(value.shape), "dtype": _name(value.dtype), "magnitude": magnitude}
    metadata = {_FORMAT_KEY: FORMAT, _SIGNS_KEY: json.dumps(signs), _SAME_KEY: json.dumps(same)}
    metadata[_DIGEST_KEY] = _digest(stored, metadata)
    try:
        content = safetensors.torch.save(stored, metadata)
        _write_aside(path, content)
    except OSError as error:
        raise CheckpointError(f"cannot write {path}: {error.strerror or error}") from error
    except (ValueError, RuntimeError, KeyError) as error:
        raise CheckpointError(f"cannot save {type(model).__name__} to {path}: {error}") from error
    return len(content)


class LoadResult(NamedTuple):
    """Keys that only the module has, and keys that only the file has."""

    missing_keys: list[str]
    unexpected_keys: list[str]


def load(model: nn.Module, path: str | Path, *, strict: bool = True) -> LoadResult:
    """Read a file of `save`, or a plain safetensors file, into a module; on any error the module is unchanged.

    Args:
        model: of the saved architecture. A module on ``meta`` gets the file's tensors, on the CPU; a
            `ProgressiveSKLinear` grows to the file's complexity.
        path: of the file.
        strict: refuse a file with other keys than the module's.

    Returns:
        The keys that only one side has; none when strict.

    Raises:
        CheckpointError: the file can't be read, is damaged, or its keys or shapes are not the module's.
    """
    path = Path(path)
    state = read(path)
    own = model.state_dict()
    _add_tied(own, state)
    missing = sorted(own.keys() - state.keys())
    unexpected = sorted(state.keys() - own.keys())
    if strict and (missing or unexpected):
        sides = (("it lacks", missing), ("it has besides", unexpected))
        raise CheckpointError(
            f"{path} does not fit {type(model).__name__}: "
            + "; ".join(f"{said} {_some(keys)}" for said, keys in sides if keys)
            + _advice(model, unexpected)
        )
    growing = _keys_that_grow(model, state)
    for key in sorted(own.keys() & state.keys() - growing):
        # a lazy module takes its sizes from the file, as in load_state_dict
        if not isinstance(own[key], _LAZY) and own[key].shape != state[key].shape:
            raise CheckpointError(
                f"{path} does not fit {type(model).__name__}: {key!r} is {tuple(state[key].shape)} in the file and "
                f"{tuple(own[key].shape)} in the module"
            )
    on_meta = any(isinstance(value, Tensor) and value.is_meta for value in own.values())
    model.load_state_dict(state, strict=strict, assign=on_meta)
    return LoadResult(missing, unexpected)


def read(path: str | Path) -> dict[str, Tensor]:
    """Read the state_dict in a file of `save`, or in a plain safetensors file, bit for bit as it was saved.

    Raises:
        CheckpointError: the file can't be read or is damaged.
    """
    import safetensors
    import safetensors.torch

    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path} " + ("is not a file" if path.exists() else "does not exist"))
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            stored = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  no mapping
    except (safetensors.SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path} is damaged or not a safetensors file: {error}") from error
    if _FORMAT_KEY not in metadata:
        return stored
    if metadata[_FORMAT_KEY] != FORMAT:
        raise CheckpointError(
            f"{path} has format {metadata[_FORMAT_KEY]}; this version of panther reads format {FORMAT}: update panther"
        )
    said = {key: value for key, value in metadata.items() if key != _DIGEST_KEY}
    if metadata.get(_DIGEST_KEY) != _digest(stored, said):
        raise CheckpointError(f"{path} is damaged: its checksum does not match its contents; copy or save it again")
    try:
        for key, entry in json.loads(metadata[_SIGNS_KEY]).items():
            dtype = getattr(torch, entry["dtype"])
            stored[key] = unpack_signs(stored.pop(key + _SUFFIX), entry["shape"], entry["magnitude"], dtype)
        for key, other in json.loads(metadata[_SAME_KEY]).items():
            stored[key] = stored[other]
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} is damaged: {error!r} in its description of sign matrices") from error
    return stored


def _add_tied(own: Mapping[str, Any], state: dict[str, Tensor]) -> None:
    """Fill in missing keys of tied tensors: transformers writes one key for each tensor."""
    addresses = {key: _address(value) for key, value in own.items()}
    held = {addresses[key]: key for key in own if key in state and addresses[key] is not None}
    for key in own.keys() - state.keys():
        if addresses[key] in held:
            state[key] = state[held[addresses[key]]]


def _address(value: Any) -> tuple[Any, ...] | None:
    if not isinstance(value, Tensor) or isinstance(value, _LAZY) or value.is_meta or not value.numel():
        return None
    return (value.data_ptr(), value.shape, value.stride(), value.dtype)


def _advice(model: nn.Module, unexpected: list[str]) -> str:
    """Advice for a file of a converted model that was loaded into the dense one."""
    dense = dict(model.named_modules())
    converted = {key.rpartition(".")[0] for key in unexpected if key.rpartition(".")[2] == "S1s"}
    converted |= {key.removesuffix(".A") for key in unexpected if f"{key.removesuffix('.A')}.B" in unexpected}
    found = sorted(name for name in converted if isinstance(dense.get(name), nn.Module))
    if not found:
        return ""
    return f"; {_some(found)} is sketched in the file and not in the module: panther.restore_(model, path) replaces it"


def _check_storable(key: str, value: Any) -> None:
    if not isinstance(value, Tensor):
        raise CheckpointError(f"the state of {key!r} is a {type(value).__name__}; only tensors can be saved")
    if isinstance(value, _LAZY):
        raise CheckpointError(f"{key!r} is not initialized and has no values to save; call the module first")
    if value.is_meta:
        raise CheckpointError(f"{key!r} is on the device 'meta' and has no values to save; load its weights first")
    if value.layout != torch.strided:
        raise CheckpointError(f"{key!r} has layout {value.layout}; only strided tensors can be saved")


def _keys_of_fixed_matrices(model: nn.Module) -> set[str]:
    return {
        f"{name}.{buffer}" if name else buffer
        for name, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, SKLinear | SKConv1d | SKConv2d)
        for buffer in ("U1s", "U2s")
    }


def _keys_that_grow(model: nn.Module, state: Mapping[str, Tensor]) -> set[str]:
    """Keys of growing layers that can take the size in the file."""
    keys: set[str] = set()
    for name, module in model.named_modules():
        prefix = f"{name}." if name else ""
        sizes = module.sizes_in(state, prefix) if isinstance(module, ProgressiveSKLinear) else None
        if sizes is None:
            continue
        L, k = sizes
        d_in, d_out = module.in_features, module.out_features
        shapes = {"S1s": (L, d_in, k), "U2s": (L, d_in, k), "S2s": (L, k, d_out), "U1s": (L, k, d_out)}
        wanted = {f"{prefix}current_layer.{term}": shape for term, shape in shapes.items()}
        if all(key in state and state[key].shape == shape for key, shape in wanted.items()):
            keys |= wanted.keys()
    return keys


def _digest(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    digest.update(json.dumps(dict(sorted(metadata.items()))).encode())
    for key, value in sorted(tensors.items()):
        digest.update(f"{key} {_name(value.dtype)} {list(value.shape)}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _write_aside(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, aside = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".writing", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        Path(aside).chmod(0o666 & ~umask)
        Path(aside).replace(path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            Path(aside).unlink()


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _some(keys: list[str]) -> str:
    return ", ".join(keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")
