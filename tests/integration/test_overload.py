"""More work than can be done: what waits is bounded, the rest is turned away at once, and probes are answered."""

import asyncio
import contextlib
import json
import socket
import threading
import time

import httpx
import numpy as np
import pytest
from helpers import build
from helpers.batching import BATCHED
from helpers.engine import batcher_of, settle, submit

from app.errors import InferenceFailedError, OverloadedError
from app.runtime.runner import RunResult
from app.service.admission import AdmissionControl, Reservation


class Gate:
    """A model whose runs wait until they may end, or are stopped."""

    name = "gate"
    batched, batching = True, BATCHED
    labelled = None
    gathers = False
    optional_inputs = ()

    def __init__(self):
        self.output_by_name = {}
        self.open = threading.Event()
        self.runs = []

    def run(self, feeds, output_names, options=None):
        self.runs.append(len(feeds["x"]))
        while not self.open.wait(0.001):
            if options is not None and options.terminate:
                raise InferenceFailedError("stopped")
        return RunResult([feeds["x"]])


def rows_of(count):
    return np.zeros((count, 2), np.float32)


async def until(condition):
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.001)


@pytest.mark.parametrize(
    ("bounds", "rule"),
    [
        ({"max_queue_rows": 10}, r"'gate' is overloaded: 11 rows would be queued, more than max_queue_rows \(10\)"),
        ({"max_queue_bytes": 80}, r"88 bytes would be queued, more than max_queue_bytes \(80\)"),
        ({"max_wait_ns": 4_500_000_000}, r"the request would wait 5000 ms, more than max_queue_ms \(4500\)"),
    ],
)
def test_the_queue_is_bounded_and_the_rest_is_told_when_to_come_again(bounds, rule):
    model, ended = Gate(), []

    async def run():
        batcher = batcher_of(model, 4, 0, **bounds)
        batcher.cost.set(4, 2_000_000_000)
        submit(batcher, rows_of(1), ended, "runs")
        await until(lambda: model.runs)
        for number in range(5):
            submit(batcher, rows_of(2), ended, number)
        assert ended == []
        assert (batcher.why_full() is None) == ("max_queue_bytes" in bounds)  # bytes are not known beforehand
        submit(batcher, rows_of(1), ended, "turned away")
        assert [completion.name for completion in ended] == ["turned away"]
        model.open.set()
        await settle(batcher)
        batcher.close()

    asyncio.run(run())
    error = ended[0].error
    with pytest.raises(OverloadedError, match=rule):
        raise error
    assert error.wait_s == 5  # ten rows, four in two seconds
    assert [completion.name for completion in ended[1:] if completion.error is None] == ["runs", 0, 1, 2, 3, 4]


def test_a_run_whose_clients_have_all_left_is_stopped():
    model, ended = Gate(), []

    async def run():
        batcher = batcher_of(model, 4, 0)
        first, second = (submit(batcher, rows_of(1), ended, name) for name in ("first", "second"))
        await until(lambda: model.runs)
        assert batcher.running_s
        batcher.cancel(first)
        await asyncio.sleep(0.02)
        assert batcher.running_s  # one client still waits
        submit(batcher, rows_of(1), ended, "other")
        batcher.cancel(second)
        await until(lambda: len(model.runs) == 2)
        model.open.set()
        await settle(batcher)
        assert not batcher.running_s
        batcher.close()

    asyncio.run(run())
    assert model.runs == [2, 1]
    assert [completion.name for completion in ended] == ["other"]


def test_the_first_request_waits_for_others_for_as_long_as_it_may():
    model, ended = Gate(), []
    model.open.set()

    async def run():
        batcher = batcher_of(model, 4, 10**12, short=(1,), delay_ns=50_000_000)
        began = time.perf_counter()
        submit(batcher, rows_of(1), ended)
        await asyncio.sleep(0)
        submit(batcher, rows_of(1), ended)
        await settle(batcher)
        waited_s = time.perf_counter() - began
        batcher = batcher_of(model, 4, 10**12, short=(1,), delay_ns=10**12)
        submit(batcher, rows_of(3), ended)
        await asyncio.sleep(0.01)
        submit(batcher, rows_of(1), ended)  # no more would fit
        await settle(batcher)
        return waited_s

    waited_s = asyncio.run(run())
    assert model.runs == [2, 4]
    assert waited_s >= 0.05
    assert len(ended) == 4


def test_requests_do_not_share_a_run_where_that_is_off():
    model, ended = Gate(), []
    model.open.set()

    async def run():
        batcher = batcher_of(model, 4, 10**12, together=False, delay_ns=10**12)
        for rows in (1, 2, 9):
            submit(batcher, rows_of(rows), ended)
        await settle(batcher)

    asyncio.run(run())
    assert model.runs == [1, 2, 4, 4, 1]
    assert [len(completion.result.array(0)) for completion in ended] == [1, 2, 9]


def test_decoding_comes_in_slices_in_the_order_of_arrival():
    done, turns = [], []

    async def run():
        admission = AdmissionControl(1000, slice_ns=2_000_000)

        def start(number):
            time.sleep(0.001)
            done.append(number)

        def tick():
            turns.append(len(done))
            if admission.waiting:
                asyncio.get_running_loop().call_soon(tick)

        for number in range(10):
            if admission.may_start():
                start(number)
                admission.started()
            else:
                admission.later(lambda number=number: start(number))
        assert 1 <= len(done) <= 3
        tick()
        while admission.waiting:
            await asyncio.sleep(0)

    asyncio.run(run())
    assert done == list(range(10))
    assert len(set(turns)) >= 3  # others had their turn in between


def test_bytes_in_hand_are_bounded():
    admission = AdmissionControl(100)
    first, second = Reservation(admission), Reservation(admission)
    first.reserve(60)
    with pytest.raises(OverloadedError, match=r"hold 60 bytes, and this one's 41 would exceed max_queue_bytes \(100\)"):
        second.reserve(41)
    second.reserve(40)
    first.release()
    first.release()
    assert admission.reserved_bytes == 40
    del second  # the request is gone, and nothing refers to what it reserved
    assert admission.reserved_bytes == 0


def test_over_the_bound_requests_get_503_at_once_and_probes_an_answer(serve):
    client = serve(build.slow_graph(), num_threads=1, max_batch_rows=8, max_queue_rows=16)
    statuses, waits = [], []

    def ask(own):
        answer = own.post("/predict", json={"inputs": [0.5] * 8})
        statuses.append(answer.status_code)
        if answer.status_code == 503:
            waits.append((answer.headers["retry-after"], answer.json()["error"]))

    clients = [httpx.Client(base_url=client.base_url, timeout=60) for _ in range(12)]
    threads = [threading.Thread(target=ask, args=(own,)) for own in clients]
    for thread in threads:
        thread.start()
    assert client.get("/health/live").status_code == 200
    for thread, own in zip(threads, clients, strict=True):
        thread.join()
        own.close()
    assert set(statuses) == {200, 503}
    assert statuses.count(200) >= 3
    assert all(int(seconds) >= 1 and "more than max_queue_rows (16)" in error for seconds, error in waits)
    live = client.get("/stats").json()["models"][0]["live"]
    assert live["failures_by_reason"] == {"OverloadedError": statuses.count(503)}


def test_bodies_in_hand_are_bounded_whether_announced_long_or_sent_in_pieces(serve, tiny):
    client = serve(tiny.graph(), max_queue_bytes=3 * 1024 * 1024)
    address = (client.base_url.host, client.base_url.port)
    good = {"inputs": [[0.5] * 6]}
    head = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 60000000\r\n\r\n"
    held = []
    for _ in range(2):  # a claim alone costs little
        held.append(socket.create_connection(address))
        held[-1].sendall(head + b"[")
    time.sleep(0.1)
    assert client.post("/predict", json=good).status_code == 200
    refused = socket.create_connection(address, timeout=60)
    refused.sendall(head)
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it grows past the bound, and is refused
        refused.sendall(b" " * 59_000_000)
        assert refused.recv(65536).startswith(b"HTTP/1.1 503")
    for one in (*held, refused):
        one.close()
    for _ in range(100):
        if client.post("/predict", json={"inputs": [[0.5] * 6] * 60_000}).status_code == 200:
            break
        time.sleep(0.02)
    else:
        pytest.fail("what the closed connections held was not released")
    chunked = client.post("/predict", content=(b" " * 100_000 for _ in range(40)))
    assert chunked.status_code == 503
    assert "max_queue_bytes (3145728)" in chunked.json()["error"]
    for _ in range(5):  # nothing is left of it all
        assert client.post("/predict", content=json.dumps(good)).status_code == 200
    assert client.post("/predict", json={"inputs": [[0.5] * 6] * 60_000}).status_code == 200


def test_a_long_body_is_received_whole_though_its_room_grows(client, tiny):
    x = np.random.default_rng(0).standard_normal((200_000, 6)).astype(np.float32)
    headers = {"content-type": "application/octet-stream", "accept": "application/octet-stream"}
    for _ in range(3):
        answer = client.post("/predict", content=x.tobytes(), headers=headers)
        values = np.frombuffer(answer.content, np.float32).reshape(-1, 3)
        np.testing.assert_allclose(values, tiny.logits(x), rtol=1e-3, atol=1e-4)
