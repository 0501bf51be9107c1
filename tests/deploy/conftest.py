"""What the deployment tests share: which of them run, a free port, HTTP, and digits with their classes."""

import json
import os
import socket
import urllib.error
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# These need an engine, or a minute and an index of packages: 'make test-compose' and 'make test-make' ask for them.
ON_REQUEST = ("docker", "environment")


def pytest_collection_modifyitems(config, items):
    asked = config.option.markexpr or ""
    left_out = [
        item for item in items if any(item.get_closest_marker(mark) and mark not in asked for mark in ON_REQUEST)
    ]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


class Client:
    """Asks a server for JSON."""

    def __init__(self, port):
        self.address = f"http://127.0.0.1:{port}"

    def __call__(self, path, body=None):
        """The status and the JSON of a GET, or of a POST where there is a body."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.address + path, data, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)


@pytest.fixture(scope="session")
def free_port():
    """Finds a TCP port that nobody listens on."""

    def find():
        with socket.create_server(("127.0.0.1", 0)) as listener:
            return listener.getsockname()[1]

    return find


@pytest.fixture(scope="session")
def client():
    return Client


@pytest.fixture(scope="session")
def root():
    return ROOT


@pytest.fixture(scope="session")
def plain_env():
    """The caller's environment less what would change the server's settings."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PANTHER_")}


@pytest.fixture(scope="session")
def digits():
    """Held-out rows of the shipped model's data, as lists, and the class of each."""
    from panther.train.data import load_digits

    data = load_digits()
    return data.test_x[:200].tolist(), [data.labels[index] for index in data.test_y[:200].tolist()]
