"""Calls one gRPC method over and over, on many connections; prints what it measured as one line of JSON, as wrk does.

    python grpc_load.py PORT MESSAGE_FILE CLIENTS SECONDS

It writes HTTP/2 frames that are made once, and reads of an answer whether a message came and when it ended: gRPC's own
client takes longer for a call than the server that is measured.
"""

import json
import selectors
import socket
import struct
import sys
import time
from pathlib import Path

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
END_STREAM, END_HEADERS, ACK = 1, 4, 1
WINDOW = 65535


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes((kind, flags)) + struct.pack(">I", stream) + payload


def text(value: bytes) -> bytes:
    assert len(value) < 127
    return bytes((len(value),)) + value


def header_block(port: int) -> bytes:
    """HPACK without its tables, so that it is the same for every request."""
    path = b"/inference.GRPCInferenceService/ModelInfer"
    parts = [b"\x83\x86\x04", text(path), b"\x01", text(b"127.0.0.1:%d" % port)]  # POST, http, :path, :authority
    parts += [b"\x0f\x10", text(b"application/grpc"), b"\x00", text(b"te"), text(b"trailers")]
    return b"".join(parts)


class Client:
    """One connection with one call in flight."""

    def __init__(self, port: int, message: bytes) -> None:
        self.sock = socket.create_connection(("127.0.0.1", port))
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.block = header_block(port)
        self.body = b"\0" + struct.pack(">I", len(message)) + message
        assert len(self.body) <= 16384, "a message is one frame"
        self.window = WINDOW  # that the server leaves us on the connection
        self.stream = -1
        self.received = b""
        self.owed = False  # whether a call waits for the window
        self.answered = False  # whether a message came
        self.began = 0.0
        self.sock.sendall(
            PREFACE
            + frame(SETTINGS, 0, 0, struct.pack(">HIHI", 2, 0, 4, 2**31 - 1))  # no push, and a window without bound
            + frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", 2**31 - 1 - WINDOW))
        )

    def call(self) -> None:
        self.owed = self.window < len(self.body)
        if self.owed:
            return
        self.window -= len(self.body)
        self.stream += 2
        self.answered = False
        self.began = time.perf_counter()
        self.sock.sendall(
            frame(HEADERS, END_HEADERS, self.stream, self.block) + frame(DATA, END_STREAM, self.stream, self.body)
        )

    def read(self) -> bool | None:
        """Read what came; whether the call succeeded, None while it has not ended."""
        data = self.received + self.sock.recv(65536)
        at, ended = 0, None
        while len(data) - at >= 9:
            length, kind, flags = int.from_bytes(data[at : at + 3]), data[at + 3], data[at + 4]
            if len(data) - at < 9 + length:
                break
            stream = int.from_bytes(data[at + 5 : at + 9]) & 0x7FFFFFFF
            payload = data[at + 9 : at + 9 + length]
            at += 9 + length
            if kind == DATA:
                self.answered = self.answered or length > 0
            elif kind in (SETTINGS, PING) and not flags & ACK:
                self.sock.sendall(frame(kind, ACK, 0, payload if kind == PING else b""))
            elif kind == WINDOW_UPDATE and stream == 0:
                self.window += int.from_bytes(payload)
                if self.owed:
                    self.call()
            elif kind in (RST_STREAM, GOAWAY):
                raise ConnectionError(f"frame {kind} of the server: {payload!r}")
            if stream == self.stream and kind in (DATA, HEADERS) and flags & END_STREAM:
                ended = self.answered
        self.received = data[at:]
        return ended


def main() -> None:
    port, message, clients, seconds = (
        int(sys.argv[1]),
        Path(sys.argv[2]).read_bytes(),
        int(sys.argv[3]),
        int(sys.argv[4]),
    )
    selector = selectors.DefaultSelector()
    made = [Client(port, message) for _ in range(clients)]
    for client in made:
        selector.register(client.sock, selectors.EVENT_READ, client)
        client.call()
    times, bad = [], 0
    began = time.perf_counter()
    end = began + seconds
    while (now := time.perf_counter()) < end:
        for key, _ in selector.select(1.0):
            client = key.data
            ended = client.read()
            if ended is not None:
                times.append(time.perf_counter() - client.began)
                bad += not ended
                client.call()
    times.sort()
    found = {
        "requests": len(times),
        "duration_us": round(1e6 * (now - began)),
        "p50_us": round(1e6 * times[len(times) // 2]),
        "p99_us": round(1e6 * times[len(times) * 99 // 100]),
        "bad_status": bad,
        "errors": 0,
    }
    print("RESULT " + json.dumps(found))


if __name__ == "__main__":
    main()
