"""The fuzz target of compact checkpoints."""

import json
import os
import struct
from pathlib import Path

import numpy as np
from fuzz_oracles import Finding


def checkpoint(data: bytes) -> bool:
    """Compact checkpoints: what is taken is what the file says, read again with json and numpy.

    Where the first byte is odd the digest is made right, as somebody would who means harm.
    """
    from panther.checkpoint import CheckpointError, read

    content = signed(data[1:]) if data[:1] and data[0] % 2 else data[1:]
    path = Path(f"/dev/shm/panther-fuzz-{os.getpid()}.safetensors")
    path.write_bytes(content)
    try:
        found = read(path)
    except CheckpointError as error:
        if len(str(error)) > 2000:
            raise Finding(f"a message of {len(str(error))} characters") from error
        return False
    finally:
        path.unlink()
    start = 8 + struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8:start])
    metadata = header.pop("__metadata__", None) or {}
    expected = {}
    for key, entry in header.items():
        if entry["dtype"] in KNOWN:
            begin, end = (start + offset for offset in entry["data_offsets"])
            expected[key] = np.frombuffer(content[begin:end], KNOWN[entry["dtype"]]).reshape(entry["shape"])
    if "panther.format" in metadata:
        for key, entry in json.loads(metadata["panther.signs"]).items():
            count = int(np.prod(entry["shape"]))
            bits = np.unpackbits(expected.pop(f"{key}.signs"))[:count].reshape(entry["shape"])
            expected[key] = np.where(bits == 1, entry["magnitude"], -entry["magnitude"]).astype(entry["dtype"])
    for key, value in expected.items():
        if not np.array_equal(found[key].numpy(), value, equal_nan=value.dtype.kind == "f"):
            raise Finding(f"{key} is read differently")
    return True


KNOWN = {"F32": np.float32, "F64": np.float64, "F16": np.float16, "I64": np.int64, "U8": np.uint8, "BOOL": np.bool_}


def signed(content: bytes) -> bytes:
    """A checkpoint with the digest that its contents have."""
    import safetensors
    import safetensors.torch

    from panther.checkpoint import _digest

    try:
        tensors = safetensors.torch.load(content)
        metadata = json.loads(content[8 : 8 + struct.unpack("<Q", content[:8])[0]]).get("__metadata__") or {}
        said = {key: value for key, value in metadata.items() if key != "panther.digest"}
        return safetensors.torch.save(tensors, {**said, "panther.digest": _digest(tensors, said)})
    except Exception:  # noqa: BLE001 - it is none
        return content
