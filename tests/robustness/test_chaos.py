"""Everything at once: clients of all manners, reloads, kill -9, no descriptors, no temporary files."""

import gzip
import http.client
import json
import os
import random
import resource
import signal
import socket
import struct
import subprocess
import threading
import time
from collections import Counter
from contextlib import ExitStack

import httpx
import numpy as np
import pytest
from helpers.processes import LIMIT_S, WIDTH, model, proc, put, running, wide
from onnx import TensorProto, helper, numpy_helper

CHAOS_S = 15
KILLS = 3
LARGE = 200_000  # numbers in an answer of the model 'wide'
MIB = 2**20


def times(factor):
    """A batched model that multiplies: its answers tell the request and the version that they belong to."""
    constant = numpy_helper.from_array(np.array(factor, np.float32), "k")
    node = helper.make_node("Mul", ["x", "k"], ["y"])
    return model([node], ("x", TensorProto.FLOAT, ["n", WIDTH]), ("y", TensorProto.FLOAT, ["n", WIDTH]), [constant])


class Chaos:
    """What goes on, in threads, until it is stopped.

    Attributes:
        seen: what came of the requests; 'lost' are those without an answer, 'starved' those lost while `starving`.
        starving: a worker has no free descriptor: its event loop closes connections that it can't accept.
        wrong: answers that were not those to their requests.
    """

    def __init__(self, server):
        self.server = server
        self.seen = Counter()
        self.wrong = []
        self.starving = False
        self._stop = threading.Event()
        self._threads = []

    def start(self, act, seed):
        """Repeat something with its own random numbers."""

        def run():
            rng = random.Random(seed)
            while not self._stop.is_set():
                try:
                    act(rng)
                except (OSError, http.client.HTTPException, httpx.TransportError) as error:
                    self.seen[f"{act.__name__} {'starved' if self.starving else 'lost'}"] += 1
                    self.seen[type(error).__name__] += 1
                    time.sleep(0.02)
                except Exception as error:
                    self.wrong.append(repr(error))
                    raise

        thread = threading.Thread(target=run, name=act.__name__)
        self._threads.append(thread)
        thread.start()

    def stop(self):
        self._stop.set()
        for thread in self._threads:
            thread.join(2 * LIMIT_S)
            assert not thread.is_alive(), thread.name

    def _connect(self):
        return socket.create_connection(("127.0.0.1", self.server.port), timeout=LIMIT_S)

    def _note(self, kind, status, rows, document, values):
        self.seen[f"{kind} {status}"] += 1
        if status == 200:
            version = document.get("version") or document["model_version"]
            if values != [[int(version) * number for number in row] for row in rows]:
                self.wrong.append((rows, document))
        elif status != 503 or not document.get("error"):
            self.wrong.append((status, document))

    def regular(self, rng):
        """Clients that keep their connection for some requests, of every form."""
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=LIMIT_S)
        try:
            for _ in range(rng.randint(1, 20)):
                rows = [[rng.randint(-99, 99) for _ in range(WIDTH)] for _ in range(rng.choice((1, 1, 3, 40)))]
                kind = rng.choice(("json", "gzip", "v2"))
                path, headers = "/models/m/predict", {"content-type": "application/json"}
                body = json.dumps({"inputs": rows}).encode()
                if kind == "gzip":
                    body, headers["content-encoding"] = gzip.compress(body, 1), "gzip"
                elif kind == "v2":
                    path = "/v2/models/m/infer"
                    data = [number for row in rows for number in row]
                    tensor = {"name": "x", "shape": [len(rows), WIDTH], "datatype": "FP32", "data": data}
                    body = json.dumps({"inputs": [tensor]}).encode()
                connection.request("POST", path, body, headers)
                answer = connection.getresponse()
                document = json.loads(answer.read())
                values = None
                if answer.status == 200:
                    flat = document["outputs"][0]["data"] if kind == "v2" else None
                    values = [flat[at : at + WIDTH] for at in range(0, len(flat), WIDTH)] if flat else None
                    values = values or document["outputs"]["y"]
                self._note(kind, answer.status, rows, document, values)
                if answer.will_close:
                    break
        finally:
            connection.close()

    def cancelling(self, rng):
        """Clients that go away, in the middle of their request or before its answer."""
        body = json.dumps({"inputs": [[1.0] * WIDTH] * rng.choice((1, 5000))}).encode()
        head = b"POST /models/m/predict HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
        request = head + body
        with self._connect() as sock:
            sock.sendall(request[: rng.choice((10, len(head), len(request) // 2, len(request)))])
            time.sleep(rng.choice((0, 0.001, 0.02)))
            if rng.random() < 0.5:  # with a reset
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.seen["cancelled"] += 1

    def slow(self, rng):
        """Clients that read a large answer in drops, and mostly not to its end."""
        body = b'{"inputs": [[1.0]]}'
        with self._connect() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.sendall(
                b"POST /models/wide/predict HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body
            )
            for _ in range(rng.randint(1, 20)):
                sock.recv(1000)
                time.sleep(0.01)
        self.seen["slow"] += 1

    def reloading(self, rng):
        """Commands that change which version is served, in all workers; now and then, none is."""
        config = json.dumps({"version_policy": {"specific": {"versions": [rng.choice((1, 2))]}}})
        action = "unload" if rng.random() < 0.2 else "load"
        body = {} if action == "unload" else {"parameters": {"config": config}}
        answer = self.server.ask("POST", f"/v2/repository/models/m/{action}", json=body)
        self.seen[f"{action} {answer.status_code}"] += 1
        time.sleep(0.1)

    def looking(self, rng):
        """Health checks and figures, which are answered throughout."""
        path = rng.choice(("/health/live", "/health/ready", "/metrics", "/stats"))
        status = self.server.ask("GET", path).status_code
        if status != 200 and path != "/health/ready":
            self.wrong.append((path, status))
        time.sleep(0.05)

    def begin(self):
        acts = [self.regular] * 4 + [self.cancelling] * 2 + [self.slow] * 2 + [self.reloading] * 2 + [self.looking]
        for seed, act in enumerate(acts):
            self.start(act, seed)


def held(pid):
    """Memory, descriptors and threads of a process."""
    status = dict(line.split(":", 1) for line in (proc(pid) / "status").read_text().splitlines())
    return 1024 * int(status["RssAnon"].split()[0]), len(list((proc(pid) / "fd").iterdir())), int(status["Threads"])


def most_held(server):
    """The most that any worker holds of each."""
    return tuple(map(max, zip(*map(held, server.children()), strict=True)))


def starve(server, pid):
    """Leave a worker no free descriptor for a second."""
    try:
        before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (len(list((proc(pid) / "fd").iterdir())), before[1]))
        time.sleep(1)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
    except OSError:  # it ended meanwhile
        assert server.process.poll() is None


@pytest.fixture
def temporary(tmp_path):
    """A folder for temporary files that has no room, or none at all where no disk may be mounted here."""
    folder = tmp_path / "tmp"
    with ExitStack() as stack:
        if os.geteuid() == 0:
            folder.mkdir()
            mount = ["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(folder)]
            if subprocess.run(mount, check=False, capture_output=True).returncode == 0:
                stack.callback(subprocess.run, ["umount", "-l", str(folder)], check=True)
                with pytest.raises(OSError, match="No space left"), (folder / "filler").open("wb") as stream:
                    stream.write(bytes(MIB))
        yield folder


def test_in_the_midst_of_everything_answers_are_right_and_nothing_is_kept(tmp_path, temporary):
    for version in (1, 2):
        put(tmp_path / "models", times(version), "m", version)
    put(tmp_path / "models", wide(LARGE), "wide", 1)
    arguments = ("--model-control", "explicit", "--trial-load-s", "0")
    with running(tmp_path / "models", *arguments, workers=2, TMPDIR=str(temporary)) as server:
        before = Chaos(server)
        before.begin()
        server.wait_for(lambda: before.seen["json 200"] > 100 and before.seen["load 200"] > 5)
        before.stop()
        usual = most_held(server)
        chaos = Chaos(server)
        chaos.begin()
        for number in range(KILLS):
            began = time.monotonic()
            chaos.starving = True
            starve(server, server.children()[0])
            chaos.starving = False
            os.kill(server.pid, signal.SIGHUP)
            os.kill(server.children()[number % 2], signal.SIGKILL)
            server.wait_for(lambda number=number: server.log.count("starting another") == number + 1)
            server.wait_for(lambda number=number: server.log.count("ready: serving") == number + 3)
            time.sleep(max(0, CHAOS_S / KILLS - (time.monotonic() - began)))
        chaos.stop()

        assert before.wrong == []
        assert chaos.wrong == []
        assert not [kind for kind in before.seen if kind.endswith("lost")], before.seen
        # A kill costs each client what it had asked and, once more, a connection that waited to be accepted or closed.
        assert sum(count for kind, count in chaos.seen.items() if kind.endswith("lost")) <= 2 * KILLS * 11, chaos.seen
        for kind in ("json 200", "gzip 200", "v2 200", "load 200", "unload 200", "cancelled", "slow"):
            assert chaos.seen[kind], chaos.seen

        # It is at peace again: all workers alike, and nothing kept of what was.
        assert server.ask("POST", "/v2/repository/models/m/load").status_code == 200
        one = {"inputs": [[1] * WIDTH]}
        versions = {server.ask("POST", "/models/m/predict", json=one).json()["version"] for _ in range(16)}
        assert versions == {"2"}
        server.wait_for(lambda: server.ask("GET", "/health/ready").status_code == 200)
        server.wait_for(lambda: most_held(server)[0] < usual[0] + 48 * MIB)
        server.wait_for(lambda: most_held(server)[1] < usual[1] + 8)
        server.wait_for(lambda: most_held(server)[2] < usual[2] + 8)
        assert server.end() == 0
