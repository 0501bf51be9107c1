"""Where inputs come from: seeds that are right or nearly, and changes that keep some of their structure."""

import gzip
import io
import json
import random
import re
import zlib
from pathlib import Path

import numpy as np
from fuzz_targets import KINDS, ROOT

_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|-?\d[\d.eE+-]*|[\[\]{},:]|true|false|null')
_ODD = [
    b"0", b"-0", b"1", b"-1", b"1.0", b"1e2", b"0.1", b"1e39", b"-1e39", b"1e308", b"1e309", b"-1e999",
    b"5e-324", b"3.4028234663852886e38", b"3.4028235e38", b"3.4028236e38", b"3.39e38", b"3.3953e38", b"65504",
    b"65520", b"7e4", b"127", b"128", b"255", b"256", b"-129", b"32768", b"65536", b"2147483647",
    b"2147483648", b"-2147483649", b"9007199254740993", b"9223372036854775807", b"9223372036854775808",
    b"18446744073709551615", b"18446744073709551616", b"-9223372036854775809", b"1" + b"0" * 400, b"01", b"1.",
    b".5", b"+1", b"1e", b"0x10", b"null", b"true", b"false", b"NaN", b"Infinity", b"-Infinity", b'""', b'"a"',
    b'"\\ud800"', b'"\\u0000"', b'"[["', b"[]", b"[[]]", b"{}", b"[{}]", b"[", b"]", b"{", b"}", b",", b":",
    b"/**/", b"\xef\xbb\xbf", b"\xff", b"\x00", b" ", b'"inputs"', b'"outputs"', b'"top_k"', b'"name"',
    b'"shape"', b'"data"', b'"datatype"', b'"parameters"', b'"id"', b'"x"', b'"y"', b'"z"', b'"FP32"',
    b'"in\\u0070uts"', b'"binary_data_size"', b'"binary_data"', b'"classification"', b'"inputs":5,',
    b'"id":1,', b'"priority":1,', b'"shared_memory_region":"a",', b'{"a":1}', b"[1,2,3]", b"[[1,2],[3]]",
]  # fmt: skip


def change(data: bytes, rng: random.Random, keep: int = 0) -> bytes:
    """A changed input; the first ``keep`` bytes are changed seldom, and only one by one."""
    head, body = bytearray(data[:keep]), bytearray(data[keep:])
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        kind = rng.random()
        if kind < 0.1 and head:
            head[rng.randrange(len(head))] = rng.randrange(256)
        elif kind < 0.65 and (tokens := list(_TOKEN.finditer(body))):
            body = _change_token(body, rng.choice(tokens), tokens, rng)
        elif body:
            body = _change_bytes(body, rng)
    return bytes(head + body)


def _change_token(body: bytearray, token: re.Match, tokens: list, rng: random.Random) -> bytearray:
    begin, end = token.span()
    kind = rng.randrange(6)
    if kind <= 1:
        return body[:begin] + rng.choice(_ODD) + body[end:]
    if kind == 2:
        return body[:begin] + rng.choice(_ODD) + body[begin:]
    if kind == 3:
        return body[:begin] + body[end:]
    other = rng.choice(tokens)
    if kind == 4:  # a piece again, somewhere else
        piece = body[begin : max(end, other.end())][:200]
        at = rng.choice(tokens).start()
        return body[:at] + piece + body[at:]
    return body[:begin] + other[0] + body[end:]


def _change_bytes(body: bytearray, rng: random.Random) -> bytearray:
    at = rng.randrange(len(body))
    kind = rng.randrange(7)
    if kind == 0:
        body[at] ^= 1 << rng.randrange(8)
    elif kind == 1:
        body[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF))
    elif kind == 2:
        return body[:at]
    elif kind == 3:
        return body[:at] + body[at + rng.randrange(1, 9) :]
    elif kind == 4:
        return body[:at] + bytes(rng.randrange(256) for _ in range(rng.randrange(1, 9))) + body[at:]
    elif kind == 5:
        size = rng.choice((1, 2, 4, 8))
        value = rng.choice((0, 1, 2 ** (8 * size - 1), 2 ** (8 * size) - 1)).to_bytes(size, "little")
        return body[:at] + value + body[at + size :]
    else:
        other = rng.randrange(len(body))
        return body[:at] + body[other : other + 64] + body[at:]
    return body


def _value(datatype: str, number: int):
    if datatype == "BOOL":
        return number % 2 == 0
    return f"t{number}" if datatype == "BYTES" else number + (0.5 if "FP" in datatype else 0)


def _nested(shape: tuple[int, ...], datatype: str):
    if not shape:
        return _value(datatype, 1)
    return [_nested(shape[1:], datatype) for _ in range(shape[0])]


def _shape(tensor, rows: int) -> tuple[int, ...]:
    return tuple((rows if index == 0 else 2) if size is None else size for index, size in enumerate(tensor.shape))


def seeds(name: str) -> list[bytes]:
    """What fuzzing of a target begins with."""
    return {
        "plain_json": _plain,
        "protocol": _protocol,
        "npy": _npy,
        "octets": _octets,
        "csv": _csv,
        "encoded": _encoded,
        "card": _card,
        "protobuf": _protobuf,
        "checkpoint": _checkpoint,
    }[name]()


KEPT = {
    "plain_json": 1,
    "protocol": 4,
    "npy": 1,
    "octets": 1,
    "csv": 1,
    "encoded": 1,
    "card": 0,
    "protobuf": 0,
    "checkpoint": 1,
}
"""Bytes in front that choose what is read, and how."""


def _plain() -> list[bytes]:
    found = []
    for which, kind in enumerate(KINDS):
        for rows in (1, 3):
            given = {tensor.name: _nested(_shape(tensor, rows), tensor.datatype) for tensor in kind.inputs}
            documents = [{"inputs": given}, {"inputs": given, "outputs": [kind.outputs[-1].name], "top_k": 2}]
            if len(given) == 1:
                documents.append({"inputs": next(iter(given.values()))})
            found += [bytes([which]) + json.dumps(document).encode() for document in documents]
    return found


def _protocol() -> list[bytes]:
    found = []
    for which, kind in enumerate(KINDS):
        whole, heads, tail = [], [], b""
        for tensor in kind.inputs:
            shape = _shape(tensor, 2)
            item = {"name": tensor.name, "shape": list(shape), "datatype": tensor.datatype}
            count = int(np.prod(shape))
            whole.append({**item, "data": [_value(tensor.datatype, number) for number in range(count)]})
            size = {"FP16": 2, "BF16": 2, "BYTES": 6, "BOOL": 1, "FP32": 4, "FP64": 8, "UINT8": 1, "INT8": 1}
            size |= {"UINT16": 2, "INT32": 4, "INT64": 8, "UINT64": 8}
            content = b"\2\0\0\0ab" * count if tensor.datatype == "BYTES" else bytes(count * size[tensor.datatype])
            heads.append({**item, "parameters": {"binary_data_size": len(content)}})
            tail += content
        outputs = [{"name": kind.outputs[0].name, "parameters": {"binary_data": True, "classification": 0}}]
        rest = {"id": "a", "outputs": outputs, "parameters": {"priority": 1, "timeout": 5, "binary_data_output": True}}
        for document in ({"inputs": whole}, {"inputs": whole, **rest}):
            whole_body = json.dumps(document).encode()
            found.append(bytes([which, 0, 0, 0]) + whole_body)
        for document in ({"inputs": heads}, {"inputs": heads, **rest}):
            head = json.dumps(document).encode()
            found.append(bytes([which, 1]) + len(head).to_bytes(2, "little") + head + tail)
        found.append(bytes([which, 1, 0, 0]) + tail)
    return found


def _npy() -> list[bytes]:
    found = []
    for which, kind in enumerate(KINDS):
        for dtype in ("<f4", "<f8", ">f4", "<i8", "u1", "?", "<f2", "<U2", "<c8"):
            for order in ("C", "F"):
                stream = io.BytesIO()
                np.save(stream, np.ones(_shape(kind.inputs[0], 2), dtype, order=order))
                found.append(bytes([which]) + stream.getvalue())
    return found


def _csv() -> list[bytes]:
    bodies = [b"1,2\n3,4\n", b"b,a\r\n1.5,-2e3\r\n", b',a,b\n0,1,"2"\n', b"\xef\xbb\xbfa,b\n 7 ,8.0\n\n9,10", b"a,b\n"]
    return [bytes([first]) + body for body in bodies for first in range(4)]


def _octets() -> list[bytes]:
    return [bytes([which]) + bytes(size) for which in range(len(KINDS)) for size in (0, 4, 8, 12, 24, 48)]


def _encoded() -> list[bytes]:
    plain = b"[[0.5, 1.5, 2.5]]" * 20
    bare = zlib.compress(plain)[2:-4]
    twice = gzip.compress(plain) + gzip.compress(b"more")
    bomb = gzip.compress(bytes(100_000))
    forms = [gzip.compress(plain), zlib.compress(plain), bare, twice, bomb, plain, zlib.compress(gzip.compress(plain))]
    return [bytes([way]) + form for way in range(5) for form in forms]


def _card() -> list[bytes]:
    card = json.loads((ROOT / "tests" / "robustness" / "hostile" / "card.json").read_text())
    latency = {"device": "cpu", "num_threads": 2, "batch_sizes": [1], "median_us": [1.5], "dense_twin_median_us": [2]}
    storage = {"precision": "float32", "u_storage": "bits", "weight_bytes": 12}
    more = {**card, "latency": latency, "storage": storage, "schema_version": "1.1", "new": {"a": [1]}}
    points = [{"bytes": 9, "error": 0.5, "measured": True, "chosen": True}, {"bytes": 5, "error": 1, "measured": False}]
    more["compression_curve"] = {"budget": "9 bytes", "original_bytes": 20, "original_metric": 1, "points": points}
    return [json.dumps(item).encode() for item in (card, more, {**card, "schema_version": "2.0"})]


def _protobuf() -> list[bytes]:
    model = (ROOT / "models" / "digits" / "1" / "model.onnx").read_bytes()
    small = [b"", b"\x08\x96\x01", b"\x12\x07testing", b"\x1a\x03\x08\x96\x01", b"\x0d\1\2\3\4", b"\x09" + bytes(8)]
    return [*small, model[:2000], model[-3000:]]


def _checkpoint() -> list[bytes]:
    import tempfile

    import safetensors.torch
    import torch

    import panther
    from panther.nn import SKLinear

    found = []
    with tempfile.TemporaryDirectory() as folder:
        for module in (SKLinear(8, 8, 1, 1), torch.nn.Sequential(SKLinear(8, 9, 1, 2), torch.nn.BatchNorm1d(9))):
            panther.save(module, Path(folder) / "a.safetensors")
            found.append((Path(folder) / "a.safetensors").read_bytes())
    found.append(safetensors.torch.save({"a": torch.ones(2, 3), "b": torch.arange(3)}))
    return [bytes([sign]) + content for content in found for sign in (0, 1)]
