"""Clients that leave before their answer leave nothing in memory, on both request paths, with the collector off."""

import contextlib
import gc
import socket
import threading
import time
import tracemalloc
from contextlib import ExitStack, contextmanager

import numpy as np
import onnx
import pytest
import uvicorn
from helpers.build import onnx_model, put
from onnx import TensorProto, helper, numpy_helper

from app.application import create_app
from app.config.settings import Settings
from app.process.sockets import bind
from app.process.worker import make_config

FLOATS = 2_000_000
BODY_BYTES = 4 * FLOATS  # larger than a buffer that is kept for the next body
CLIENTS = 6
# Both go to the model; of a page of another origin the application answers, through ASGI.
PATHS = {"fast path": (), "ASGI": ("Origin: https://page.example",)}


def large_input_slow_run() -> onnx.ModelProto:
    """A model of one row of many numbers, which multiplies matrices as often as the first of them says."""
    matrix = np.linalg.qr(np.random.default_rng(0).standard_normal((256, 256)))[0].astype(np.float32)
    state = ["state", TensorProto.FLOAT, [256, 256]]
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("MatMul", ["state", "W"], ["next"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info(*state),
        ],
        [
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", *state[1:]),
        ],
    )
    constants = [
        numpy_helper.from_array(matrix, "W"),
        numpy_helper.from_array(np.ones((), np.bool_), "yes"),
        *(
            numpy_helper.from_array(np.array(value, np.int64), name)
            for name, value in zip("abc", ([0, 0], [1, 1], [0, 1]), strict=True)
        ),
    ]
    nodes = [
        helper.make_node("Slice", ["x", "a", "b", "c"], ["first"]),
        helper.make_node("Squeeze", ["first"], ["wanted"]),
        helper.make_node("Cast", ["wanted"], ["times"], to=TensorProto.INT64),
        helper.make_node("Loop", ["times", "yes", "W"], ["end"], body=body),
        helper.make_node("ReduceMax", ["end"], ["most"], keepdims=0),
        helper.make_node("Add", ["x", "most"], ["y"]),
    ]
    shape = [1, FLOATS]
    return onnx_model(nodes, [("x", TensorProto.FLOAT, shape)], [("y", TensorProto.FLOAT, shape)], constants)


class Served:
    """A server in a thread, and what is in its memory."""

    def __init__(self, application, port):
        self.application = application
        self.port = port
        self._others = connections()

    def alive(self):
        """The kinds of this server's connections and requests that are in memory."""
        return [type(thing).__name__ for thing in connections() if all(thing is not other for other in self._others)]

    @property
    def batcher(self):
        return self.application.state.panther.repository.get("m", None).batcher

    @property
    def reserved(self):
        return self.application.service.admission.reserved_bytes

    def wait_for(self, condition):
        end = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < end, (self.reserved, held(), self.alive())
            time.sleep(0.01)

    def connect(self, stack):
        return stack.enter_context(socket.create_connection(("127.0.0.1", self.port), timeout=60))

    def begin_run(self, stack, times, headers=()):
        """A client whose run takes as long as told; returns once the model is at it."""
        sock = self.connect(stack)
        sock.sendall(request(times, headers))
        self.wait_for(lambda: self.batcher.running_s > 0)
        return sock


def request(times, headers=(), *, part=1.0):
    row = np.zeros(FLOATS, np.float32)
    row[0] = times
    fields = ["POST /predict HTTP/1.1", "Host: localhost", "Content-Type: application/octet-stream", *headers]
    fields += ["Accept: application/octet-stream", f"Content-Length: {BODY_BYTES}", "", ""]
    return "\r\n".join(fields).encode() + row.tobytes()[: int(part * BODY_BYTES)]


def held():
    """Bytes that Python's objects take, bodies among them; what the allocator keeps for later is not in it."""
    return tracemalloc.get_traced_memory()[0]


def connections():
    """Every connection and request in memory, those of other tests' servers among them."""
    names = {"Connection", "WireRequest", "AsgiRequest"}
    return [thing for thing in gc.get_objects() if type(thing).__name__ in names]


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    put(root, large_input_slow_run(), "m")
    settings = Settings(
        model_dir=root, num_threads=1, cors_origins="*", trial_load_s=0, max_queue_bytes=1 << 30, inline_run_us=0
    )  # no run in the event loop, however short the last ones were
    application, sock = create_app(settings), bind("127.0.0.1", 0)
    server = uvicorn.Server(make_config(application, settings))
    thread = threading.Thread(target=server.run, args=([sock],))
    gc.collect()
    gc.freeze()  # what the process had before is not looked through each time: in a whole run that is a million objects
    thread.start()
    tracemalloc.start()
    found = Served(application, sock.getsockname()[1])
    try:
        found.wait_for(lambda: application.state.panther.not_ready_because(alone=True) is None)
        yield found
    finally:
        server.should_exit = True
        thread.join()
        tracemalloc.stop()
        gc.unfreeze()


@pytest.fixture(autouse=True)
def _nothing_is_left(served):
    with ExitStack() as stack:  # what is made once is made before
        sock = served.connect(stack)
        sock.sendall(request(0))
        assert sock.recv(15) == b"HTTP/1.1 200 OK"
    served.wait_for(lambda: not served.alive())
    gc.collect()
    before = held()
    gc.disable()
    try:
        yield
        # Half of one body of those that were sent would be too much.
        served.wait_for(lambda: served.reserved == 0 and not served.alive() and held() < before + BODY_BYTES // 2)
    finally:
        gc.enable()


@contextmanager
def leaving(served):
    """Clients that all leave at the end of the block."""
    with ExitStack() as stack:
        yield [served.connect(stack) for _ in range(CLIENTS)]


@pytest.mark.parametrize("headers", PATHS.values(), ids=PATHS)
def test_within_the_headers(served, headers):
    with leaving(served) as socks:
        for sock in socks:
            sock.sendall(request(0, headers)[:60])
        served.wait_for(lambda: len(served.application.connections._watchdog._connections) == CLIENTS)


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("headers", PATHS.values(), ids=PATHS)
def test_within_the_body(served, headers, chunked):
    with leaving(served) as socks:
        for sock in socks:
            if chunked:
                text = request(0, headers, part=0).replace(
                    f"Content-Length: {BODY_BYTES}".encode(), b"Transfer-Encoding: chunked"
                )
                sock.sendall(text + (b"10000\r\n" + bytes(65536) + b"\r\n") * (BODY_BYTES // 65536 // 2))
            else:
                sock.sendall(request(0, headers, part=0.5))
        served.wait_for(lambda: served.reserved >= 0.4 * CLIENTS * BODY_BYTES)


@pytest.mark.parametrize("fields", [(), ("X-Timeout: 1",)])
@pytest.mark.parametrize("headers", PATHS.values(), ids=PATHS)
def test_queued_behind_a_run(served, headers, fields):
    with ExitStack() as stack:
        busy = served.begin_run(stack, 3000)
        with leaving(served) as socks:
            for sock in socks:
                sock.sendall(request(0, (*headers, *fields)))
            served.wait_for(lambda: served.batcher.depth == CLIENTS)
            assert served.reserved >= CLIENTS * BODY_BYTES
        # Long before the run ends that they waited for.
        served.wait_for(lambda: served.batcher.depth == 0)
        served.wait_for(lambda: served.reserved <= 2 * BODY_BYTES)
        assert served.batcher.running_s > 0
        busy.close()


@pytest.mark.parametrize("headers", PATHS.values(), ids=PATHS)
def test_while_their_run_is_under_way(served, headers):
    for _ in range(CLIENTS):
        with ExitStack() as stack:
            served.begin_run(stack, 300, headers)
            assert served.reserved >= BODY_BYTES
        served.wait_for(lambda: not served.batcher.running_s)


@pytest.mark.parametrize("headers", PATHS.values(), ids=PATHS)
def test_while_their_answer_is_sent(served, headers):
    with leaving(served) as socks:
        for sock in socks:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.sendall(request(0, headers))
            assert sock.recv(15, socket.MSG_PEEK) == b"HTTP/1.1 200 OK"


def test_pipelined_behind_another_request(served):
    with ExitStack() as stack:
        for _ in range(CLIENTS):
            sock = served.begin_run(stack, 300)
            sock.settimeout(0.5)
            with contextlib.suppress(TimeoutError):  # the server reads no more
                while True:
                    sock.sendall(request(0))
            sock.close()
            served.wait_for(lambda: not served.batcher.running_s)
