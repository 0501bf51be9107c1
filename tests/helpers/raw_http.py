"""Raw HTTP over a socket, for requests that no client library sends, and requests for the tests' model."""

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import httpx

ROW = [0.5, -1.0, 2.0, 0.25, 0.0, 1.5]
BODY = json.dumps({"inputs": [ROW]}).encode()
FAST, SLOW = "/predict", "/v2/repository/index"  # served on the fast path, and through uvicorn


@contextmanager
def wire(client: httpx.Client, size: int | None = None) -> Iterator[socket.socket]:
    """A connection to the client's server, with a large receive buffer."""
    sock = socket.socket()
    if size is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)
    sock.settimeout(60)
    sock.connect((client.base_url.host, client.base_url.port))
    with sock:
        yield sock


def head(path: str, *headers: str, length: int | None = None) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: x", "Content-Type: application/json", *headers]
    if length is not None:
        lines.append(f"Content-Length: {length}")
    return "\r\n".join([*lines, "", ""]).encode()


def rest(sock: socket.socket) -> bytes:
    """All data until the connection ends."""
    data = b""
    try:
        while piece := sock.recv(65536):
            data += piece
    except ConnectionResetError:
        data += b"<reset>"
    return data


def answer(data: bytes) -> tuple[int, dict[str, str], dict]:
    """Status, headers and document of a response that ends the connection."""
    top, _, body = data.partition(b"\r\n\r\n")
    lines = top.decode().split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:])}
    return int(lines[0].split()[1]), headers, json.loads(body[: int(headers["content-length"])])
