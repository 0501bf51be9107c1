import http.server
import os
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager

import pytest


class OnIPv6(http.server.HTTPServer):
    address_family = socket.AF_INET6


@contextmanager
def serving(address, handler):
    if ":" in address[0]:
        try:
            socket.create_server(address, family=socket.AF_INET6).close()
        except OSError:
            pytest.skip("this machine has no IPv6")
    with (OnIPv6 if ":" in address[0] else http.server.HTTPServer)(address, handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield httpd.server_port
        finally:
            httpd.shutdown()
            thread.join()


@pytest.fixture
def server():
    class Handler(http.server.BaseHTTPRequestHandler):
        status = 200

        def do_GET(self):
            assert self.path == "/health/ready"
            body = b'{"ready": "see the status"}'
            self.send_response(type(self).status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    with serving(("127.0.0.1", 0), Handler) as port:
        yield port, Handler


def check(root, port, **environment):
    return subprocess.run(
        [sys.executable, "-I", "-S", root / "deploy/healthcheck.py"],
        env=os.environ | {"PANTHER_PORT": str(port)} | environment,
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize(("status", "code"), [(200, 0), (503, 1), (404, 1), (500, 1)])
def test_only_the_status_200_is_healthy(root, server, status, code):
    port, handler = server
    handler.status = status
    answer = check(root, port)
    assert (answer.returncode, answer.stderr) == (code, "")
    assert "see the status" in answer.stdout


@pytest.mark.parametrize(
    ("host", "address"),
    [("::", "::1"), ("::1", "::1"), ("127.0.0.2", "127.0.0.2"), ("0.0.0.0", "127.0.0.1"), ("", "127.0.0.1")],
)
def test_the_server_is_asked_where_it_listens(root, server, host, address):
    with serving((address, 0), server[1]) as port:
        assert check(root, port, PANTHER_HOST=host).returncode == 0
    answer = check(root, port, PANTHER_HOST=host)
    where = f"[{address}]" if ":" in address else address
    assert (answer.returncode, f"{where}:{port} does not answer: " in answer.stdout) == (1, True)


def test_nobody_listening_is_unhealthy_and_says_so(root, free_port):
    port = free_port()
    answer = check(root, port)
    assert (answer.returncode, answer.stderr) == (1, "")
    assert f"127.0.0.1:{port} does not answer: " in answer.stdout
