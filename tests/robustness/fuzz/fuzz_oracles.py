"""What the decoders should make of an input, said again with json and numpy alone, slow and plain.

Nothing of ``app`` is used here. Where an input is to be refused an oracle returns None.
"""

import json
import math
import struct
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

WIDTHS = {"BOOL": "?", "FP16": "e", "FP32": "f", "FP64": "d", "BYTES": "O", "BF16": "H"}
WIDTHS |= {f"{sign}INT{bits}": f"{sign.lower() or 'i'}{bits // 8}" for sign in ("", "U") for bits in (8, 16, 32, 64)}
CODES = {"i1": "b", "u1": "B", "i2": "h", "u2": "H", "i4": "i", "u4": "I", "i8": "q", "u8": "Q"}
DTYPES = {name: np.dtype(code) for name, code in WIDTHS.items()}


@dataclass(frozen=True)
class Tensor:
    """An input or output: name, protocol datatype, shape with None for dynamic dimensions."""

    name: str
    datatype: str
    shape: tuple[int | None, ...]

    def takes(self, shape: tuple[int, ...]) -> bool:
        return len(shape) == len(self.shape) and all(
            want in (None, got) for want, got in zip(self.shape, shape, strict=True)
        )


@dataclass(frozen=True)
class Kind:
    """A model as the decoders know it."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    batched: bool
    labels: bool


class Finding(Exception):
    """The product and the oracle differ."""


class Refused(Exception):
    """The input is to be refused."""


def need(condition: Any) -> None:
    if not condition:
        raise Refused


def strict_json(body: bytes) -> Any:
    """JSON by the standard: UTF-8 without a mark, no NaN, no half characters, numbers within doubles."""
    try:
        text = body.decode()
        # As pairs first: a key that comes again would hide what its first value was.
        stack = [json.loads(text, parse_constant=lambda _: need(condition=False), object_pairs_hook=tuple)]
        document = json.loads(text)
    except (ValueError, RecursionError):
        raise Refused from None
    if text.count("[") + text.count("{") > 1000:
        need(deepest(text) <= 1024)
    while stack:
        item = stack.pop()
        if isinstance(item, list | tuple):
            stack += item
        elif isinstance(item, str):
            need(not any(0xD800 <= ord(character) < 0xE000 for character in item))
        elif isinstance(item, int | float) and not isinstance(item, bool):
            try:
                need(math.isfinite(float(item)))
            except OverflowError:
                raise Refused from None
    return document


def deepest(text: str) -> int:
    """How deep lists and objects lie within one another."""
    depth = found = 0
    inside = escaped = False
    for character in text:
        if inside:
            inside, escaped = escaped or character != '"', not escaped and character == "\\"
        elif character == '"':
            inside = True
        elif character in "[{":
            depth += 1
            found = max(found, depth)
        elif character in "]}":
            depth -= 1
    return found


def element(value: Any, datatype: str) -> Any:
    if datatype == "BOOL":
        need(isinstance(value, bool))
        return value
    if datatype == "BYTES":
        need(isinstance(value, str))
        return value
    need(isinstance(value, int | float) and not isinstance(value, bool))
    if "INT" in datatype:
        need(isinstance(value, int))
        limits = np.iinfo(DTYPES[datatype])
        need(limits.min <= value <= limits.max)
        return value
    wide = np.float64(value)
    with np.errstate(over="ignore"):
        if datatype == "BF16":
            narrow = wide.astype(np.float32).astype(ml_dtypes.bfloat16)
            need(np.isfinite(narrow.astype(np.float32)))
            return narrow.view(np.uint16)
        narrow = wide.astype(DTYPES[datatype])
    need(np.isfinite(narrow))
    return narrow


def array_of(flat: list, datatype: str, shape: tuple[int, ...]) -> np.ndarray:
    array = np.empty(len(flat), dtype=DTYPES[datatype])
    for position, value in enumerate(flat):
        array[position] = element(value, datatype)
    return array.reshape(shape)


def nested(value: Any, tensor: Tensor) -> np.ndarray:
    """A tensor from nested lists of exactly its rank."""
    lengths: list[set[int]] = [set() for _ in tensor.shape]
    flat: list = []

    def walk(item: Any, depth: int) -> None:
        if depth == len(tensor.shape):
            need(not isinstance(item, list | dict))
            flat.append(item)
            return
        need(isinstance(item, list))
        lengths[depth].add(len(item))
        for part in item:
            walk(part, depth + 1)

    walk(value, 0)
    shape = []
    for want, found in zip(tensor.shape, lengths, strict=True):
        need(len(found) <= 1)
        size = next(iter(found), want or 0)
        need(want is None or size == want)
        shape.append(size)
    return array_of(flat, tensor.datatype, tuple(shape))


def rows_agree(kind: Kind, feeds: dict[str, np.ndarray]) -> None:
    if kind.batched:
        # a batch without rows too: the models take one
        need(len({array.shape[0] for array in feeds.values()}) == 1)


def plain(kind: Kind, body: bytes) -> tuple[dict[str, np.ndarray], tuple[str, ...], int | None]:
    """The plain API's JSON."""
    document = strict_json(body)
    need(isinstance(document, dict) and not document.keys() - {"inputs", "outputs", "top_k"} and "inputs" in document)
    given = document["inputs"]
    if isinstance(given, dict):
        need(given.keys() == {tensor.name for tensor in kind.inputs})
    else:
        need(len(kind.inputs) == 1)
        given = {kind.inputs[0].name: given}
    feeds = {tensor.name: nested(given[tensor.name], tensor) for tensor in kind.inputs}
    names = [tensor.name for tensor in kind.outputs]
    wanted = document.get("outputs")
    if wanted is not None:
        need(isinstance(wanted, list) and wanted and all(isinstance(name, str) and name in names for name in wanted))
        names = list(dict.fromkeys(wanted))
    rows_agree(kind, feeds)
    top_k = document.get("top_k")
    if top_k is not None:
        need(type(top_k) is int and 1 <= top_k <= 1000 and kind.labels)
    return feeds, tuple(names), top_k


def whole(value: Any) -> int:
    need(type(value) is int and 0 <= value < 2**64)
    return value


def parameters_of(item: dict) -> dict:
    found = item.get("parameters")
    need(found is None or isinstance(found, dict))
    return found or {}


def binary(content: bytes, tensor: Tensor, shape: tuple[int, ...]) -> np.ndarray:
    count = math.prod(shape)
    if tensor.datatype != "BYTES":
        dtype = np.dtype(np.uint8) if tensor.datatype == "BOOL" else DTYPES[tensor.datatype]
        need(len(content) == count * dtype.itemsize)
        code = CODES.get(dtype.str[1:], dtype.char)
        array = np.array([value for (value,) in struct.iter_unpack("<" + code, content)], dtype).reshape(shape)
        return array != 0 if tensor.datatype == "BOOL" else array
    texts = []
    while content:
        need(len(content) >= 4)
        length = int.from_bytes(content[:4], "little")
        need(len(content) >= 4 + length)
        texts.append(text(content[4 : 4 + length]))
        content = content[4 + length :]
    need(len(texts) == count)
    array = np.empty(count, dtype=object)
    array[:] = texts
    return array.reshape(shape)


def text(content: bytes) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise Refused from None


def protocol(kind: Kind, body: bytes, header: bytes | None) -> tuple[dict[str, np.ndarray], list, Any]:
    """The Open Inference Protocol: feeds, (name, binary, classes) of each output, and (id, priority, timeout)."""
    if header is not None:
        need(header and all(48 <= digit < 58 for digit in header) and len(header) <= 20 and int(header) <= len(body))
        if int(header) == 0:
            feeds = raw(kind, body)
            rows_agree(kind, feeds)
            return feeds, [(tensor.name, True, 0) for tensor in kind.outputs], (None, 0, 0)
    length = len(body) if header is None else int(header)
    document, tail = strict_json(body[:length]), body[length:]
    need(isinstance(document, dict))
    for key, expected in (("model_name", "fake"), ("model_version", "1")):
        named = document.get(key)
        need(named is None or (isinstance(named, str) and named in ("", expected)))
    inputs = document.get("inputs")
    need(isinstance(inputs, list) and inputs)
    by_name = {tensor.name: tensor for tensor in kind.inputs}
    feeds: dict[str, np.ndarray] = {}
    for item in inputs:
        need(isinstance(item, dict))
        name, shape = item.get("name"), item.get("shape")
        need(isinstance(name, str) and name in by_name and name not in feeds)
        tensor = by_name[name]
        need(item.get("datatype") == tensor.datatype)
        need(isinstance(shape, list) and all(type(size) is int and 0 <= size < 2**64 for size in shape))
        need(tensor.takes(tuple(shape)) and math.prod(size or 1 for size in shape) <= 2**48)
        given = parameters_of(item)
        need("shared_memory_region" not in given)
        size = given.get("binary_data_size")
        if size is not None:
            need(item.get("data") is None and whole(size) <= len(tail))
            feeds[name], tail = binary(tail[:size], tensor, tuple(shape)), tail[size:]
            continue
        need("data" in item and tensor.datatype not in ("FP16", "BF16"))
        feeds[name] = row_major(item["data"], tensor, tuple(shape))
    need(feeds.keys() == by_name.keys() and not tail)
    rows_agree(kind, feeds)
    return feeds, *asked(kind, document)


def row_major(data: Any, tensor: Tensor, shape: tuple[int, ...]) -> np.ndarray:
    if not isinstance(data, list):
        need(not shape and not isinstance(data, dict))
        return array_of([data], tensor.datatype, shape)
    if data and isinstance(data[0], list):
        need(shape and math.prod(shape) >= 0)
        return nested_exactly(data, tensor, shape)
    need(len(data) == math.prod(shape))
    return array_of(data, tensor.datatype, shape)


def nested_exactly(data: list, tensor: Tensor, shape: tuple[int, ...]) -> np.ndarray:
    level = [data]
    for size in shape:
        need(all(isinstance(item, list) and len(item) == size for item in level))
        level = [part for item in level for part in item]
    return array_of(level, tensor.datatype, shape)


def asked(kind: Kind, document: dict) -> tuple[list, tuple]:
    parameters = parameters_of(document)
    by_default = parameters.get("binary_data_output", False)
    need(isinstance(by_default, bool))
    identity = document.get("id")
    need(identity is None or isinstance(identity, str))
    by_name = {tensor.name: tensor for tensor in kind.outputs}
    wanted = document.get("outputs")
    need(wanted is None or isinstance(wanted, list))
    outputs = []
    for item in wanted or [{"name": name} for name in by_name]:
        need(isinstance(item, dict) and isinstance(item.get("name"), str) and item["name"] in by_name)
        given = parameters_of(item)
        need("shared_memory_region" not in given)
        as_binary, classes = given.get("binary_data", by_default), whole(given.get("classification", 0))
        need(isinstance(as_binary, bool))
        datatype = by_name[item["name"]].datatype
        need(not classes or datatype not in ("BF16", "BYTES", "BOOL"))
        need(datatype not in ("FP16", "BF16") or as_binary or classes)
        outputs.append((item["name"], as_binary, classes))
    need(len({name for name, _, _ in outputs}) == len(outputs))
    return outputs, (identity, whole(parameters.get("priority", 0)), whole(parameters.get("timeout", 0)))


def raw(kind: Kind, body: bytes) -> dict[str, np.ndarray]:
    """The only input from its bytes alone."""
    need(len(kind.inputs) == 1)
    tensor = kind.inputs[0]
    need(tensor.shape.count(None) <= 1)
    if tensor.datatype == "BYTES":
        need(all(size in (None, 1) for size in tensor.shape))
        return {tensor.name: array_of([text(body)], "BYTES", (1,) * len(tensor.shape))}
    unit = DTYPES[tensor.datatype].itemsize * math.prod(size for size in tensor.shape if size is not None)
    need(body and unit and len(body) % unit == 0)
    shape = tuple(len(body) // unit if size is None else size for size in tensor.shape)
    return {tensor.name: binary(body, tensor, shape)}


def same(left: dict[str, np.ndarray], right: dict[str, np.ndarray]) -> bool:
    """Whether tensors are alike: names, types, shapes, bits but for the sign of zero and the payload of NaN."""
    return left.keys() == right.keys() and all(
        left[name].dtype == right[name].dtype
        and left[name].shape == right[name].shape
        and np.array_equal(left[name], right[name], equal_nan=left[name].dtype.kind == "f")
        for name in left
    )
