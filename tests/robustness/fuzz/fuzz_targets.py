"""What is fuzzed: each target takes bytes, has the product read them, and holds the outcome to an oracle.

A target returns True where the input was accepted, False where it was refused as it should be. All else is a finding:
another exception than the product's own, an acceptance that the oracle does not share, a refusal of what is right.
"""

import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import fuzz_oracles as oracles
import numpy as np
from fuzz_checkpoints import checkpoint
from fuzz_oracles import Finding, Kind, Refused, Tensor
from helpers.batching import BATCHED, UNBATCHED

from app.engine.codec import arrays, compression, plain
from app.engine.codec.csv_form import read_csv
from app.engine.codec.oip import Decoder
from app.engine.codec.oip_header import read_header
from app.engine.codec.prepared import prepare
from app.engine.codec.table import Table, TableColumn
from app.engine.codec.values import parse_json
from app.errors import AppError, CardError, InvalidRequestError
from app.runtime import protobuf as messages
from app.runtime.card import parse_card
from app.runtime.signature import HasSignature, Signature
from app.runtime.tensors import ELEMENTS, TensorSpec

ROOT = Path(__file__).parents[3]
MAX_ROWS = 1_000_000
Y, Z = Tensor("y", "FP32", (None, 4)), Tensor("z", "INT64", (None,))
KINDS = [
    Kind((Tensor("x", "FP32", (None, 3)),), (Y,), batched=True, labels=True),
    Kind((Tensor("x", "FP32", (None, None)),), (Y, Z), batched=True, labels=False),
    Kind((Tensor("x", "INT64", (None, 2)),), (Y, Tensor("w", "BYTES", (None,))), batched=True, labels=False),
    Kind((Tensor("x", "FP64", (None, 2)),), (Y,), batched=True, labels=False),
    Kind((Tensor("a", "FP32", (None, 2)), Tensor("b", "INT32", (None, 1))), (Y, Z), batched=True, labels=True),
    Kind((Tensor("x", "BOOL", (None, 2)),), (Tensor("y", "BOOL", (None, 2)),), batched=True, labels=False),
    Kind((Tensor("x", "BYTES", (None, 2)),), (Y,), batched=True, labels=False),
    Kind((Tensor("x", "BYTES", (None, 1)),), (Y,), batched=False, labels=False),
    Kind((Tensor("x", "UINT8", (2, 2)),), (Tensor("y", "FP16", (2,)),), batched=False, labels=False),
    Kind((Tensor("x", "FP16", (None, 2)),), (Tensor("y", "BF16", (None, 2)),), batched=True, labels=False),
    Kind((Tensor("x", "BF16", (None, 2)),), (Y,), batched=True, labels=False),
    Kind((Tensor("x", "FP32", ()),), (Y,), batched=False, labels=False),
    Kind((Tensor("x", "INT32", (None,)),), (Y,), batched=True, labels=False),
    Kind((Tensor("x", "UINT64", (None, 1, None)),), (Y,), batched=False, labels=False),
    Kind((Tensor("x", "INT8", (None, 0)), Tensor("b", "UINT16", ())), (Y,), batched=False, labels=False),
]
_DTYPES = dict(ELEMENTS.values())


def spec(tensor: Tensor) -> TensorSpec:
    return TensorSpec(tensor.name, tensor.datatype, _DTYPES[tensor.datatype], tensor.shape, (None,) * len(tensor.shape))


class Model(HasSignature):
    """As much of a loaded model as decoding looks at."""

    def __init__(self, kind: Kind) -> None:
        self.name, self.version = "fake", "1"
        self.signature = Signature(tuple(map(spec, kind.inputs)), tuple(map(spec, kind.outputs)))
        self.batching = BATCHED if kind.batched else UNBATCHED
        self.takes_empty = self.takes_no_rows = True
        self.labelled, self.columns = (object() if kind.labels else None), None


MODELS = [Model(kind) for kind in KINDS]


def outcome(read: Callable, *arguments):
    """What comes of reading: the result, or None where it was refused with a message."""
    try:
        return read(*arguments)
    except AppError as error:
        if not str(error) or len(str(error)) > 2000:
            raise Finding(f"a message of {len(str(error))} characters: {str(error)[:300]}") from error
        return None


def right(oracle: Callable, *arguments):
    try:
        return oracle(*arguments)
    except Refused:
        return None


def hold(found, expected, alike: Callable, data: bytes) -> bool:
    if (found is None) != (expected is None):
        said = "refused" if found is None else "accepted"
        raise Finding(f"{said}, the oracle says otherwise: {data[:400]!r}: {found or expected!r}")
    if found is not None and not alike(found, expected):
        raise Finding(f"read differently: {data[:400]!r}: {found!r}, by the oracle {expected!r}")
    return found is not None


def plain_json(data: bytes) -> bool:
    """The plain API's JSON: the first byte chooses the model."""
    which, body = data[0] % len(KINDS) if data else 0, data[1:]
    model = MODELS[which]
    found = outcome(plain.decode, model, body, MAX_ROWS)
    precise = outcome(lambda: plain._precise(model, body, MAX_ROWS, nan=False))
    if found is not None and (precise is None or not oracles.same(found[0].feeds, precise[0].feeds)):
        raise Finding(f"the quick and the precise way differ: {body[:400]!r}")

    def alike(request, expected) -> bool:
        (call, wanted), (feeds, names, top_k) = request, expected
        return oracles.same(call.feeds, feeds) and call.output_names == names and wanted == top_k

    return hold(found, right(oracles.plain, KINDS[which], body), alike, data)


def protocol(data: bytes) -> bool:
    """The Open Inference Protocol: model, whether there is a length header, and that header as two bytes."""
    if len(data) < 4:
        return False
    which, body = data[0] % len(KINDS), data[4:]
    header = None
    if data[1] & 1:
        length = int.from_bytes(data[2:4], "little")
        header = b"%d" % length if not data[1] & 2 else data[2:4]
    decoder = Decoder(MODELS[which])
    found = outcome(decoder.decode, body, header, MAX_ROWS)
    if found is not None and header is None:
        parsed = read_header(MODELS[which], parse_json(body, ""))
        feeds = prepare(MODELS[which], decoder._feeds(parsed, body, len(body)), parsed.options.output_names).feeds
        if not oracles.same(found[0].feeds, feeds) or parsed.options != found[1]:
            raise Finding(f"the quick and the precise way differ: {body[:400]!r}")
    if found is not None and not oracles.same(decoder.decode(body, header, MAX_ROWS)[0].feeds, found[0].feeds):
        raise Finding(f"the second time it is read differently: {body[:400]!r}")

    def alike(request, expected) -> bool:
        (call, options), (feeds, outputs, rest) = request, expected
        return (
            oracles.same(call.feeds, feeds)
            and list(zip(options.output_names, options.binary, options.classes, strict=True)) == outputs
            and (options.id, options.priority, options.timeout_us) == rest
        )

    return hold(found, right(oracles.protocol, KINDS[which], body, header), alike, data)


def npy(data: bytes) -> bool:
    """numpy's file format: what is taken is what numpy reads, in a type that holds all of it."""
    which, body = data[0] % len(KINDS) if data else 0, data[1:]
    found = outcome(arrays.from_npy, MODELS[which], body)
    if found is None:
        return False
    tensor = KINDS[which].inputs[0]
    expected = np.load(io.BytesIO(body), allow_pickle=False)
    array = found[tensor.name]
    with np.errstate(over="ignore"):
        cast = expected.astype(array.dtype)
    if not (tensor.takes(array.shape) and array.dtype == oracles.DTYPES[tensor.datatype]):
        raise Finding(f"{array.dtype} {array.shape} for {tensor}: {data[:200]!r}")
    exact = np.array_equal(cast, expected) if array.dtype.kind in "iub" else np.isfinite(cast).all()
    if not (exact and np.array_equal(array, cast)):
        raise Finding(f"read differently: {data[:200]!r}")
    return True


def octets(data: bytes) -> bool:
    """Raw rows."""
    which, body = data[0] % len(KINDS) if data else 0, data[1:]

    def read():
        feeds = arrays.from_octets(MODELS[which], body)
        return prepare(MODELS[which], feeds, ("y",)).feeds

    def oracle():
        feeds = oracles.raw(KINDS[which], body)
        oracles.rows_agree(KINDS[which], feeds)
        oracles.need(all(array.dtype.kind != "f" or np.isfinite(array).all() for array in feeds.values()))
        return feeds

    return hold(outcome(read), right(oracle), oracles.same, data)


def csv_rows(data: bytes) -> bool:
    """CSV of two columns of numbers, named or not: what is taken is what Python's csv module, strip and float read."""
    named, body = bool(data) and data[0] % 2 == 1, data[1:]
    model = MODELS[2 if data and data[0] & 2 else 3]  # integers, or doubles
    (spec,) = model.inputs
    kind = "integer" if spec.dtype.kind == "i" else "number"
    table = Table([TableColumn(name, kind, spec) for name in "ab"], spec) if named else None
    found = outcome(lambda: read_csv(model, table, body, MAX_ROWS, nan=False))
    if found is None:
        return False
    rows = [row for row in csv.reader(io.StringIO(body.decode("utf-8-sig"), newline="")) if row]
    order = [0, 1]
    if named:
        names = [name.strip() for name in rows.pop(0)]
        order = [names.index(name) for name in "ab"]
    read = _whole if kind == "integer" else float
    expected = np.array([[read(row[at].strip()) for at in order] for row in rows], spec.dtype).reshape(-1, 2)
    if not np.array_equal(found["x"], expected):
        raise Finding(f"read differently: {data[:400]!r}: {found['x']!r}, by the oracle {expected!r}")
    return True


def _whole(cell: str) -> int:
    return int(cell) if cell.strip("+-0123456789 \t") == "" else int(float(cell))


def encoded(data: bytes) -> bool:
    """gzip and deflate, within a limit."""
    limit, body = 20_000, data[1:]
    names = [b"gzip", b"deflate", b"gzip, deflate", b"identity", b"deflate, gzip"]
    name = names[data[0] % len(names) if data else 0]
    found = outcome(compression.decompress, body, name, limit)
    if found is None:
        return False
    expected = bytes(body)
    for coding in reversed(name.split(b", ")):
        if coding == b"gzip":
            expected = gzip.decompress(expected) if expected[:2] == b"\x1f\x8b" else zlib.decompress(expected)
        elif coding == b"deflate":
            expected = inflated(expected)
    if len(found) > limit or bytes(found) != expected:
        raise Finding(f"read differently: {data[:200]!r}")
    return True


def inflated(data: bytes) -> bytes:
    for width in (zlib.MAX_WBITS, -zlib.MAX_WBITS):
        try:
            stream = zlib.decompressobj(width)
            plain_ = stream.decompress(data) + stream.flush()
        except zlib.error:
            continue
        if stream.eof and not stream.unused_data:
            return plain_
    raise Finding("no deflate")


def card(data: bytes) -> bool:
    """The model card: what is taken fits the schema of the contract, and can be told in JSON again."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return False
    try:
        found = parse_card(text)
    except CardError as error:
        if len(str(error)) > 2000:
            raise Finding(f"a message of {len(str(error))} characters") from error
        if fits(data):
            raise Finding(f"refused, and fits the schema: {error}") from error
        return False
    found.contradictions()
    json.dumps(found.model_dump(), allow_nan=False).encode()
    document = json.loads(text)
    if document["schema_version"].startswith("1."):
        # What the server does not read may be anything in a newer minor version.
        # A word that the server only shows may be a new one; null counts as not there.
        complaints = card_schema().iter_errors(found.model_dump(exclude_none=True))
        complaint = next((item for item in complaints if item.validator != "enum"), None)
        if complaint is not None:
            raise Finding(f"accepted against the schema: {complaint.message[:300]}")
    return True


def fits(data: bytes) -> bool:
    """Whether a card of major version 1 is right by the schema, with whole numbers that every reader holds."""
    try:
        document = oracles.strict_json(data)
    except Refused:
        return False
    if not isinstance(document, dict) or not str(document.get("schema_version")).startswith("1."):
        return False
    stack = [document]
    while stack:
        item = stack.pop()
        stack += item.values() if isinstance(item, dict) else item if isinstance(item, list) else ()
        if isinstance(item, int | float) and abs(item) >= 2**53:
            return False
    if not card_schema().is_valid(document):
        return False
    latency = document.get("latency")
    # What a schema can't say.
    lists = [] if latency is None else [latency[key] for key in ("batch_sizes", "median_us", "dense_twin_median_us")]
    return len({len(item) for item in lists}) <= 1


_schema = None


def card_schema():
    global _schema  # noqa: PLW0603 - made once
    if _schema is None:
        import jsonschema

        document = json.loads((ROOT / "docs" / "model-card.schema.json").read_text())
        _schema = jsonschema.Draft202012Validator(document)
    return _schema


def protobuf(data: bytes) -> bool:
    """Protocol buffers without a schema: what is parsed and written parses to the same."""
    try:
        fields = messages.parse(data)
    except ValueError:
        return False
    again = messages.serialise(fields)
    if messages.parse(again) != fields:
        raise Finding(f"written differently: {data[:200]!r}")
    for read in (messages.texts, messages.integers, messages.submessages):
        for number in {field[0] for field in fields}:
            try:
                read(fields, number)
            except ValueError:
                continue
    return True


@dataclass(frozen=True)
class Target:
    """A target, what of the product it is about, and its share of the inputs."""

    run: Callable[[bytes], bool]
    modules: tuple[str, ...]
    share: float


TARGETS = {
    "plain_json": Target(plain_json, ("app.engine.codec",), 0.3),
    "protocol": Target(protocol, ("app.engine.codec",), 0.25),
    "npy": Target(npy, ("app.engine.codec",), 0.05),
    "octets": Target(octets, ("app.engine.codec",), 0.05),
    "csv": Target(csv_rows, ("app.engine.codec",), 0.05),
    "encoded": Target(encoded, ("app.engine.codec",), 0.05),
    "card": Target(card, ("app.runtime.card",), 0.1),
    "protobuf": Target(protobuf, ("app.runtime.protobuf",), 0.1),
    "checkpoint": Target(checkpoint, ("panther.checkpoint", "panther.linalg.sign_bits"), 0.05),
}
__all__ = ["KINDS", "MODELS", "TARGETS", "Finding", "InvalidRequestError", "Target"]
