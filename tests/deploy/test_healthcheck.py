import http.server
import os
import subprocess
import sys
import threading

import pytest


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

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield httpd.server_port, Handler
        httpd.shutdown()
        thread.join()


def check(root, port):
    return subprocess.run(
        [sys.executable, "-I", "-S", root / "deploy/healthcheck.py"],
        env=os.environ | {"PANTHER_PORT": str(port)},
        check=False,
        capture_output=True,
        text=True,
        timeout=20,
    )


@pytest.mark.parametrize(("status", "code"), [(200, 0), (503, 1), (404, 1), (500, 1)])
def test_only_the_status_200_is_healthy(root, server, status, code):
    port, handler = server
    handler.status = status
    answer = check(root, port)
    assert (answer.returncode, answer.stderr) == (code, "")
    assert "see the status" in answer.stdout


def test_nobody_listening_is_unhealthy_and_says_so(root, free_port):
    port = free_port()
    answer = check(root, port)
    assert (answer.returncode, answer.stderr) == (1, "")
    assert f"127.0.0.1:{port} does not answer: " in answer.stdout
