"""Requests that come together are started together, and one that comes alone is not kept."""

import asyncio
import socket
import time

import pytest

from app.grpc.gathering import PROBE_EVERY, Gathering


async def until(condition):
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.001)


def test_what_comes_alone_starts_at_once_but_for_one_that_looks():
    async def run():
        started, at_once = [], []
        gathering = Gathering()
        for number in range(3 * PROBE_EVERY):
            gathering.add(lambda number=number: started.append(number))
            at_once.append(len(started) == number + 1)
            await until(lambda number=number: len(started) == number + 1)
        return at_once

    assert asyncio.run(run()).count(False) == 3


def test_what_comes_together_starts_together_in_order():
    async def run():
        started, seen = [], []
        gathering = Gathering()
        gathering._together = True
        for round_number in range(3):
            for number in range(5):
                gathering.add(lambda number=number: started.append(number))
            seen.append(len(started))
            await until(lambda round_number=round_number: len(started) == 5 * (round_number + 1))
        return started, seen

    started, seen = asyncio.run(run())
    assert started == [*range(5)] * 3
    assert seen == [0, 5, 10]  # nothing before others had their time to come


@pytest.mark.parametrize("together", [True, False])
def test_one_look_decides_on_the_next(together):
    async def run():
        started = []
        gathering = Gathering()
        gathering._together = True
        for _ in range(2 if together else 1):
            gathering.add(lambda: started.append(0))
        await until(lambda: started)
        before = len(started)
        gathering.add(lambda: started.append(1))
        waits = len(started) == before
        await until(lambda: len(started) == before + 1)
        return waits

    assert asyncio.run(run()) is together


def test_a_call_that_is_on_its_way_through_the_loop_is_not_left_for_the_next_batch():
    async def run():
        started, before = [], []
        gathering = Gathering()
        gathering._together = True
        reader, writer = socket.socketpair()

        def receive():
            reader.recv(1)
            asyncio.get_running_loop().call_soon(add)

        def add():
            before.append(len(started))
            gathering.add(lambda: started.append(1))

        with reader, writer:
            asyncio.get_running_loop().add_reader(reader, receive)
            gathering.add(lambda: started.append(0))
            writer.send(b"x")
            time.sleep(0.05)  # the timer is due when the loop gets to look at its sockets
            await until(lambda: len(started) == 2)
            asyncio.get_running_loop().remove_reader(reader)
        return before

    assert asyncio.run(run()) == [0]
