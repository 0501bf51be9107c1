"""Clients of one process, each with a connection: send one body repeatedly, and print the measurements as JSON.

    python benchmarks/gpu/clients.py '{"port": 8000, "path": "/v2/models/m/infer", "headers": {}, "body": "FILE",
        "connections": 4, "begins_s": 0, "seconds": 3, "last": "FILE"}'

It uses only the standard library: a machine with a GPU may lack a load generator. A request that ends after the time is
not counted. ``last`` gets the last response of the first connection.
"""

from __future__ import annotations

import json
import socket
import sys
import threading
import time
from pathlib import Path

_HEADER_BYTES = 64 * 1024


class Connection:
    """One connection, and the microseconds of its requests."""

    def __init__(self, port, request):
        self.request = request
        self.times_us = []
        self.error = None
        self.last = bytearray()
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=60)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def run(self, begins_s, ends_s):
        try:
            time.sleep(max(0.0, begins_s - time.time()))
            while time.time() < ends_s:
                began = time.perf_counter()
                self.exchange()
                if time.time() <= ends_s:
                    self.times_us.append(1e6 * (time.perf_counter() - began))
        except (OSError, ValueError) as error:
            self.error = f"{type(error).__name__}: {error}"

    def exchange(self):
        self.socket.sendall(self.request)
        received = b""
        while b"\r\n\r\n" not in received:
            piece = self.socket.recv(_HEADER_BYTES)
            if not piece:
                raise OSError("the server closed the connection")
            received += piece
        head, _, begun = received.partition(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200"):
            raise ValueError(head[:200].decode("latin-1"))
        (length,) = [int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
        if len(self.last) != length:
            self.last = bytearray(length)
        view, at = memoryview(self.last), len(begun)
        view[:at] = begun
        while at < length:
            count = self.socket.recv_into(view[at:])
            if not count:
                raise OSError("the server closed the connection within a response")
            at += count


def main():
    given = json.loads(sys.argv[1])
    body = Path(given["body"]).read_bytes()
    lines = [f"POST {given['path']} HTTP/1.1", f"Host: 127.0.0.1:{given['port']}"]
    lines += [f"{name}: {value}" for name, value in given["headers"].items()]
    request = "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode() + body
    connections = [Connection(given["port"], request) for _ in range(given["connections"])]
    ends_s = given["begins_s"] + given["seconds"]
    threads = [threading.Thread(target=each.run, args=(given["begins_s"], ends_s)) for each in connections]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    Path(given["last"]).write_bytes(connections[0].last)
    errors = [each.error for each in connections if each.error]
    print(json.dumps({"times_us": [us for each in connections for us in each.times_us], "errors": errors}))


if __name__ == "__main__":
    main()
