"""What the deployment tests share: which of them run, a free port, HTTP, digits with their classes, and the image."""

import json
import os
import shutil
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
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
    """The caller's environment less what would change the server's settings, as ARGS of the caller's own make does."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PANTHER_") and name != "ARGS"}


@pytest.fixture(scope="session")
def digits():
    """Held-out rows of the shipped model's data, as lists, and the class of each."""
    from panther.train.data import load_digits

    data = load_digits()
    return data.test_x[:200].tolist(), [data.labels[index] for index in data.test_y[:200].tolist()]


def docker(*arguments, check=True, **keywords):
    answer = subprocess.run(["docker", *arguments], check=False, capture_output=True, text=True, **keywords)
    if check and answer.returncode:
        pytest.fail(f"docker {' '.join(arguments)}: exit {answer.returncode}\n{answer.stdout}{answer.stderr}")
    return answer


class Stack:
    """Services of docker-compose.yml under a project name of their own, with variables of their own."""

    def __init__(self, root, name, env, files=("docker-compose.yml",)):
        self.project = f"panther-{name}-{os.getpid()}"
        self.root, self.env = root, env
        self.files = [word for file in files for word in ("--file", file)]

    def compose(self, *arguments, check=True):
        return docker("compose", *self.files, "-p", self.project, *arguments, check=check, cwd=self.root, env=self.env)

    def up(self, *services):
        started = self.compose("up", "--detach", "--wait", "--wait-timeout", "60", *services, check=False)
        if started.returncode:
            logs = self.compose("logs", "--no-color", check=False)
            pytest.fail(f"docker compose up: exit {started.returncode}\n{started.stderr}{logs.stdout}{logs.stderr}")

    def containers(self, service):
        return self.compose("ps", "--all", "--quiet", service).stdout.split()

    @property
    def container(self):
        (container,) = self.containers("server")
        return container

    def inspect(self):
        return json.loads(docker("container", "inspect", self.container).stdout)[0]

    def python(self, code, container=None):
        return docker("exec", container or self.container, "python", "-c", code, check=False)

    def down(self):
        """Ends all of it, and fails where the engine still has something of it then."""
        self.compose("--profile", "*", "down", "--volumes", "--timeout", "10")
        label = f"label=com.docker.compose.project={self.project}"
        kinds = {"container": ["--all"], "network": [], "volume": []}
        left = [docker(kind, "ls", *more, "--quiet", "--filter", label).stdout for kind, more in kinds.items()]
        assert "".join(left).split() == []


class Load:
    """Clients that ask one after another for as long as the block lasts; then `asked` and `failures` tell."""

    SECONDS = 60

    def __init__(self, address, body, clients=8):
        self.failures, self.labels, self.asked, self._ended = [], set(), 0, threading.Event()
        self._address, self._body, self._lock = address, body, threading.Lock()
        self._threads = [threading.Thread(target=self._ask) for _ in range(clients)]

    def _ask(self):
        import http.client

        connection = http.client.HTTPConnection(self._address, timeout=20)
        deadline = time.monotonic() + self.SECONDS
        while not self._ended.is_set() and time.monotonic() < deadline:
            try:
                connection.request("POST", "/predict", self._body, {"Content-Type": "application/json"})
                response = connection.getresponse()
                text = response.read()
                failure = None if response.status == 200 else f"{response.status} {text[:200]}"
                version = json.loads(text).get("version") if failure is None else None
            except (OSError, http.client.HTTPException) as error:
                failure, version = repr(error), None
                connection.close()
            with self._lock:
                self.asked += 1
                if failure:
                    self.failures.append(failure)
                else:
                    self.labels.add(version)
            time.sleep(0.002)
        connection.close()

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        time.sleep(0.5)
        return self

    def __exit__(self, *_):
        self._ended.set()
        for thread in self._threads:
            thread.join()


@pytest.fixture(scope="session")
def load():
    return Load


@pytest.fixture(scope="session", name="docker")
def docker_command():
    """Runs docker, when an engine answers."""
    if docker("info", check=False).returncode:
        pytest.fail("no Docker engine answers: start it, or see CONTRIBUTING.md")
    return docker


@pytest.fixture(scope="session")
def image(root, docker, plain_env):
    """The served image, built for these tests as docker-compose.yml builds it, and removed after them."""
    name = f"panther-sketch:test-{os.getpid()}"
    env = plain_env | {"PANTHER_IMAGE": name, "REVISION": "a-revision"}
    docker("compose", "build", "server", cwd=root, env=env)
    yield name
    docker("image", "rm", "--force", name)


@pytest.fixture(scope="session")
def make_stack(root, image, plain_env):
    """Makes a Stack that runs the image."""

    def make(name, files=("docker-compose.yml",), **variables):
        return Stack(root, name, plain_env | {"PANTHER_IMAGE": image} | variables, files)

    return make


@pytest.fixture(scope="module")
def models(root, tmp_path_factory):
    """A copy of the shipped models that a test may change."""
    folder = tmp_path_factory.mktemp("models") / "models"
    shutil.copytree(root / "models", folder)
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return folder
