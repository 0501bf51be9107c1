"""Process that decodes large request bodies: receives jobs through one pipe, sends results through another.

It imports neither the server nor onnxruntime, and ends after an idle period or when the server ends.
"""

import os
import pickle
import resource
import select
import signal
import struct
import sys
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import IO

from app.engine.codec import Api, Body, Headers
from app.engine.codec.compression import decompress
from app.engine.codec.described import ModelDescription
from app.engine.codec.model_codec import ModelCodec, ResponseForm
from app.engine.request import InferenceRequest
from app.errors import AppError

IDLE_S = 60.0
LENGTH = struct.Struct("<Q")
_MEMORY_PER_BYTE = 48
"""At worst, a JSON value of two bytes becomes an object of 56 bytes and a list entry."""
_BASE_BYTES = 512 * 1024 * 1024


@dataclass(frozen=True)
class Job(ABC):
    """A body to decode; sent to the process by pickle.

    Attributes:
        model: Model of the request.
        max_body_bytes: Limit of the decompressed body.
        max_rows: Maximum rows of a request.
    """

    model: ModelDescription
    max_body_bytes: int
    max_rows: int

    @abstractmethod
    def read(self, body: Body) -> tuple[InferenceRequest, ResponseForm]:
        """Decode a body, in this process.

        Raises:
            AppError: The body is invalid; the message says why.
        """


@dataclass(frozen=True)
class HttpJob(Job):
    """The body of a request over HTTP.

    Attributes:
        headers, query: Headers and query of the request.
        api: API of the request.
    """

    headers: Headers
    query: bytes
    api: Api

    def read(self, body: Body) -> tuple[InferenceRequest, ResponseForm]:
        """Decode the body; see ``Job``."""
        encoding = self.headers.get(b"content-encoding")
        if encoding is not None:
            body = decompress(body, encoding, self.max_body_bytes)
        return ModelCodec(self.model, self.max_rows).read(self.headers, self.query, body, self.api)


@dataclass(frozen=True)
class Refusal:
    """The reason why a body cannot be decoded.

    Attributes:
        kind: Name of the error's class.
        message: Message for the client.
    """

    kind: str
    message: str


Reply = tuple[InferenceRequest, ResponseForm] | Refusal


def write_message(stream: IO[bytes], message: object, body: Body | None = None) -> None:
    """Write an object, its tensors out of band, and a body."""
    tensors: list[pickle.PickleBuffer] = []
    text = pickle.dumps(message, protocol=5, buffer_callback=tensors.append)
    parts: list[Body] = [text, *(tensor.raw() for tensor in tensors)]
    if body is not None:
        parts.append(body)
    stream.write(LENGTH.pack(len(parts)) + b"".join(LENGTH.pack(len(part)) for part in parts))
    for part in parts:
        stream.write(part)
    stream.flush()


def read_message(stream: IO[bytes]) -> list[bytearray]:
    """The parts of a message: the object, its tensors, and the body.

    Raises:
        EOFError: The other side has closed the connection.
    """
    (count,) = LENGTH.unpack(_exactly(stream, LENGTH.size))
    sizes = [LENGTH.unpack(_exactly(stream, LENGTH.size))[0] for _ in range(count)]
    return [_exactly(stream, size) for size in sizes]


def _exactly(stream: IO[bytes], size: int) -> bytearray:
    data = bytearray(size)
    view, at = memoryview(data), 0
    while at < size:
        count = stream.readinto(view[at:])  # type: ignore[attr-defined]
        if not count:
            raise EOFError("the other process has ended")
        at += count
    return data


def main() -> None:
    """Decode bodies until idle for a while, or until the server ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.nice(5)
    incoming, outgoing = sys.stdin.buffer, sys.stdout.buffer
    while select.select([incoming], [], [], IDLE_S)[0]:
        try:
            text, body = read_message(incoming)
        except EOFError:
            return
        job: Job = pickle.loads(text)  # noqa: S301 - from the server, through a private pipe  # nosec B301
        limit = _BASE_BYTES + _MEMORY_PER_BYTE * job.max_body_bytes
        hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
        resource.setrlimit(resource.RLIMIT_DATA, (limit if hard < 0 else min(limit, hard), hard))
        reply: Reply
        try:
            reply = job.read(body)
        except AppError as error:
            reply = Refusal(type(error).__name__, str(error))
        except MemoryError:
            reply = Refusal("OverloadedError", "not enough memory for this request; try again later")
        del body
        write_message(outgoing, reply)
        del reply
