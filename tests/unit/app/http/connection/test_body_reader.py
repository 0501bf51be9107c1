"""Requests of equal length with binary tensors, which are read whole into the buffers of their bodies."""

import asyncio
import json

import numpy as np
import pytest
from uvicorn.server import ServerState

from app.application import create_app
from app.config.settings import Settings
from app.http.connection import body_reader
from app.http.connection.body_reader import POOL, RECEIVED_VIEW, SPARE_BYTES
from app.http.connection.long_bodies import LONG_BYTES
from app.http.connection.protocol import Connection
from app.process.worker import make_config

LIMIT_S = 60
ROWS = 5000  # longer than the shared buffer, and than the first buffer of a long body


class Transport:
    """What a connection needs of its transport; keeps what is written."""

    def __init__(self):
        self.written = b""
        self.protocol = None
        self.closing = False

    def write(self, data):
        self.written += data

    def writelines(self, pieces):
        self.write(b"".join(pieces))

    def close(self):
        self.closing = True

    def is_closing(self):
        return self.closing

    def get_protocol(self):
        return self.protocol

    def get_extra_info(self, *_, **__):
        return None

    def get_write_buffer_size(self):
        return 0

    def can_write_eof(self):
        return False

    def pause_reading(self):
        pass

    def resume_reading(self):
        pass


class Client:
    """A connection in memory; ``reads`` are the buffers that its bytes arrived in."""

    def __init__(self, config, state):
        self.transport = Transport()
        self.connection = self.transport.protocol = Connection(config, state, {})
        self.connection.connection_made(self.transport)
        self.reads = []

    def send(self, data):
        """Let bytes arrive at once, as the event loop reads them: again after a read that fills the buffer."""
        self.reads = []
        view = memoryview(data)
        while view:
            buffer = self.connection.get_buffer(-1)
            count = min(len(buffer), len(view))
            buffer[:count] = view[:count]
            self.reads.append((count, len(buffer)))
            self.connection.buffer_updated(count)
            view = view[count:]

    async def answers(self, count):
        """Status and body of so many answers."""
        found = []
        async with asyncio.timeout(LIMIT_S):
            while len(found) < count:
                head, separator, rest = self.transport.written.partition(b"\r\n\r\n")
                length = int(head.lower().partition(b"\r\ncontent-length: ")[2].partition(b"\r\n")[0] or 0)
                if not separator or len(rest) < length:
                    await asyncio.sleep(0.001)
                    continue
                found.append((int(head.split()[1]), rest[:length]))
                self.transport.written = rest[length:]
        return found


def binary(x, *headers):
    item = {"name": "x", "shape": list(x.shape), "datatype": "FP32", "parameters": {"binary_data_size": x.nbytes}}
    head = json.dumps({"inputs": [item], "parameters": {"binary_data_output": True}}).encode()
    lines = [
        "POST /v2/models/tiny/infer HTTP/1.1", "Host: x", f"Inference-Header-Content-Length: {len(head)}", *headers,
        f"Content-Length: {len(head) + x.nbytes}",
    ]  # fmt: skip
    return "\r\n".join([*lines, "", ""]).encode() + head + x.tobytes()


def plain(x):
    body = json.dumps({"inputs": x.tolist()}).encode()
    lines = ["POST /models/tiny/predict HTTP/1.1", "Host: x", "Content-Type: application/json"]
    return "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode() + body


def logits(answer):
    status, body = answer
    assert status == 200, body
    if b"binary_data_size" not in body:
        return np.array(json.loads(body)["outputs"]["logits"])
    return np.frombuffer(body[body.index(b"}}]}") + 4 :], np.float32).reshape(-1, 3)


@pytest.fixture
def on_connection(tiny_dir):
    """Run a test with clients of one application."""

    def run(test):
        async def whole():
            settings = Settings(model_dir=tiny_dir, trial_load_s=0, device="cpu")
            application = create_app(settings)
            application.state.panther.repository.load_all()
            application.state.panther.repository.started()
            config = make_config(application, settings)
            config.load()
            state = ServerState()
            state.default_headers = [(b"date", b"now")]
            POOL._free.clear()
            POOL._kept_bytes = 0
            await test(lambda: Client(config, state))
            assert application.service.admission.reserved_bytes == 0

        asyncio.run(whole())

    return run


def rows(seed, count=ROWS):
    return np.random.default_rng(seed).standard_normal((count, 6)).astype(np.float32)


async def warm(client, tiny, x):
    """Send two requests: the parser reads the headers of the first one, and the second one finds them known."""
    for _ in range(2):
        client.send(binary(x))
        (answer,) = await client.answers(1)
        np.testing.assert_allclose(logits(answer), tiny.logits(x), rtol=1e-3, atol=1e-4)


def test_requests_of_equal_length_take_one_read_each_that_leaves_a_byte_free(on_connection, tiny):
    async def test(connect):
        client = connect()
        await warm(client, tiny, rows(0))
        for seed in range(5):
            x = rows(seed)
            client.send(binary(x))
            assert [count for count, _ in client.reads] == [len(binary(x))]
            assert all(count < size for count, size in client.reads)
            (answer,) = await client.answers(1)
            np.testing.assert_allclose(logits(answer), tiny.logits(x), rtol=1e-3, atol=1e-4)

    on_connection(test)


def test_the_read_of_the_rest_of_a_body_leaves_a_byte_free(on_connection, tiny):
    async def test(connect):
        client = connect()
        client.send(binary(rows(0)))
        assert client.reads[-1][0] == client.reads[-1][1] - 1
        assert len(await client.answers(1)) == 1

    on_connection(test)


@pytest.mark.parametrize("cut", [1, 20, 200, 400, 40_000, -1])
def test_a_whole_request_may_come_in_two_pieces(on_connection, tiny, cut):
    async def test(connect):
        client = connect()
        await warm(client, tiny, rows(0))
        for seed in (1, 2):
            data = binary(rows(seed))
            client.send(data[:cut])
            client.send(data[cut:])
            (answer,) = await client.answers(1)
            np.testing.assert_allclose(logits(answer), tiny.logits(rows(seed)), rtol=1e-3, atol=1e-4)

    on_connection(test)


OTHERS = {
    "shorter": binary(rows(5, ROWS - 7)),
    "longer": binary(rows(5, ROWS + 7)),
    "a row": binary(rows(5, 1)),
    "longer than threads take over": binary(rows(5, LONG_BYTES // 12)),
    "as long as the buffer": binary(rows(5, (4 * 6 * ROWS + SPARE_BYTES) // 24)),
    "JSON": plain(rows(5, 500)),
    "long JSON": plain(rows(5, 4000)),
    "longer than the pool keeps": binary(rows(5, 180_000)),
    "other headers": binary(rows(5), "X-Other: 1"),
    "long other headers": binary(rows(5), "X-Other: " + 4000 * "1"),
    "for the application": b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n",
}


@pytest.mark.parametrize("apart", [True, False])
@pytest.mark.parametrize("name", OTHERS)
def test_other_requests_between_are_read_as_before(on_connection, tiny, name, apart):
    async def test(connect):
        client = connect()
        await warm(client, tiny, rows(0))
        parts = [OTHERS[name], binary(rows(1)), OTHERS[name], OTHERS[name], binary(rows(2)), binary(rows(3))]
        if apart:
            answers = []
            for part in parts:
                client.send(part)
                answers += await client.answers(1)
        else:
            client.send(b"".join(parts))
            answers = await client.answers(len(parts))
        assert {status for status, _ in answers} == {200}
        for index, seed in ((1, 1), (4, 2), (5, 3)):
            np.testing.assert_allclose(logits(answers[index]), tiny.logits(rows(seed)), rtol=1e-3, atol=1e-4)
        if name != "for the application":
            np.testing.assert_array_equal(logits(answers[2]), logits(answers[3]))

    on_connection(test)


def test_what_follows_a_request_with_an_error_is_discarded(on_connection, tiny):
    async def test(connect):
        client = connect()
        await warm(client, tiny, rows(0))
        client.send(binary(rows(1)) + b"no HTTP\r\n\r\n" + binary(rows(2)))
        answers = await client.answers(2)
        assert [status for status, _ in answers] == [200, 400]
        assert client.transport.closing

    on_connection(test)


def test_connections_do_not_share_the_buffers_of_bodies_in_flight(on_connection, tiny):
    async def test(connect):
        clients = [connect() for _ in range(4)]
        for client in clients:
            await warm(client, tiny, rows(0))
        for _ in range(3):
            for seed, client in enumerate(clients):
                client.send(binary(rows(seed))[: 50_000 - seed])
            for seed, client in enumerate(clients):
                client.send(binary(rows(seed))[50_000 - seed :])
            for seed, client in enumerate(clients):
                (answer,) = await client.answers(1)
                np.testing.assert_allclose(logits(answer), tiny.logits(rows(seed)), rtol=1e-3, atol=1e-4)

    on_connection(test)


def test_a_buffer_that_nothing_was_read_into_stays_in_the_pool(on_connection, tiny):
    async def test(connect):
        first, second = connect(), connect()
        await warm(first, tiny, rows(0))
        kept = POOL._kept_bytes
        offered = first.connection.get_buffer(-1)
        assert len(offered) == kept
        second.send(binary(rows(1)))  # takes that buffer
        assert POOL._kept_bytes == 0 or second.transport.written
        await second.answers(1)
        POOL._free.clear()
        POOL._kept_bytes = 0
        assert first.connection.get_buffer(-1) is RECEIVED_VIEW
        first.connection.connection_lost(None)

    on_connection(test)


def test_bodies_over_the_limit_have_exact_buffers(on_connection, tiny, monkeypatch):
    monkeypatch.setattr(body_reader, "_MOST_WITH_SPARE", 1000)

    async def test(connect):
        client = connect()
        await warm(client, tiny, rows(0))
        client.send(binary(rows(1)))
        assert len(client.reads) == 2
        assert client.reads[-1][0] == client.reads[-1][1]
        assert len(await client.answers(1)) == 1

    on_connection(test)
