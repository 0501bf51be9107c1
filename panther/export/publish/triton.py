"""The config.pbtxt of a model, for Triton to serve the same folder unmodified."""

from __future__ import annotations

import json
from typing import Any

HEADER = "# Written by panther with each export; remove this line to keep your own changes.\n"
MAX_BATCH_SIZE = 256
_TYPES = {
    "tensor(bool)": "TYPE_BOOL",
    "tensor(uint8)": "TYPE_UINT8",
    "tensor(uint16)": "TYPE_UINT16",
    "tensor(uint32)": "TYPE_UINT32",
    "tensor(uint64)": "TYPE_UINT64",
    "tensor(int8)": "TYPE_INT8",
    "tensor(int16)": "TYPE_INT16",
    "tensor(int32)": "TYPE_INT32",
    "tensor(int64)": "TYPE_INT64",
    "tensor(float16)": "TYPE_FP16",
    "tensor(bfloat16)": "TYPE_BF16",
    "tensor(float)": "TYPE_FP32",
    "tensor(double)": "TYPE_FP64",
    "tensor(string)": "TYPE_STRING",
}


def config(name: str, session: Any) -> str:
    """The configuration of a model, from the inputs and outputs of its session.

    Batching is on where the first axis of all inputs and outputs varies and has the same name.
    """
    inputs, outputs = session.get_inputs(), session.get_outputs()
    firsts = {entry.shape[0] if entry.shape else None for entry in (*inputs, *outputs)}
    batched = len(firsts) == 1 and isinstance(next(iter(firsts)), str)

    def tensor(kind: str, entry: Any) -> str:
        shape = entry.shape[1:] if batched else entry.shape
        dims = ", ".join(str(size if isinstance(size, int) else -1) for size in shape)
        # Triton wants one axis for a scalar per row, and removes it again
        reshape = "" if dims else "\n    reshape { shape: [] }"
        return (
            f"{kind} [\n  {{\n    name: {json.dumps(entry.name)}\n    data_type: {_TYPES[entry.type]}\n"
            f"    dims: [{dims or 1}]{reshape}\n  }}\n]\n"
        )

    return (
        HEADER
        + f'name: {json.dumps(name)}\nbackend: "onnxruntime"\nmax_batch_size: {MAX_BATCH_SIZE if batched else 0}\n'
        + "".join(tensor("input", entry) for entry in inputs)
        + "".join(tensor("output", entry) for entry in outputs)
        + ("dynamic_batching { }\n" if batched else "")
    )
