"""Health check of the container: exit 0 when the server says that it is ready.

It runs every few seconds, so it imports the least it can and needs no site-packages: ``python -I -S healthcheck.py``.
"""

import os
import socket
import sys


def main() -> int:
    """Ask GET /health/ready where the server listens; the answer's status decides."""
    host = os.environ.get("PANTHER_HOST") or "127.0.0.1"
    # What means every address is none to ask.
    if host == "0.0.0.0":  # noqa: S104  # nosec B104
        host = "127.0.0.1"
    elif host == "::":
        host = "::1"
    port = int(os.environ.get("PANTHER_PORT") or 8000)
    place = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        with socket.create_connection((host, port), timeout=4) as connection:
            connection.sendall(b"GET /health/ready HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            answer = b""
            while chunk := connection.recv(65536):
                answer += chunk
    except OSError as error:
        sys.stdout.write(f"{place} does not answer: {error}\n")
        return 1
    head, _, body = answer.partition(b"\r\n\r\n")
    status = head.split(b" ", 2)[1:2]
    sys.stdout.write(body.decode(errors="replace") + "\n")
    return 0 if status == [b"200"] else 1


if __name__ == "__main__":
    sys.exit(main())
