"""Sends requests at a given rate, answered or not, as many independent clients do; prints one line of JSON.

    python openloop.py URL BODY_FILE RATE SECONDS

Arrivals are a Poisson process. A request goes over a connection that is free, or a new one. Times count from the moment
at which a request was due, so that a generator that falls behind does not flatter the server.
"""

import asyncio
import json
import random
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

import uvloop


class Connection(asyncio.Protocol):
    """Sends one request at a time and looks at nothing of the answer but its status and its length."""

    def __init__(self, free, record):
        self.free, self.record = free, record
        self.buffer, self.due, self.wanted = b"", None, 0

    def connection_made(self, transport):
        self.transport = transport

    def send(self, data, due):
        self.due = due
        self.transport.write(data)

    def data_received(self, data):
        self.buffer += data
        head, end, rest = self.buffer.partition(b"\r\n\r\n")
        if not end:
            return
        at = head.lower().find(b"content-length:")
        if len(rest) < int(head[at + 15 :].split(b"\r\n", 1)[0]):
            return
        self.buffer = b""
        due, self.due = self.due, None
        self.record(int(head[9:12]), due)
        if b"connection: close" in head.lower():
            self.transport.close()
        else:
            self.free.append(self)

    def connection_lost(self, _):
        if self in self.free:
            self.free.remove(self)
        if self.due is not None:
            self.record(0, self.due)


async def drive(url, body, rate, seconds):
    parts = urlsplit(url)
    head = f"POST {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Type: application/json\r\n"
    data = head.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body
    loop = asyncio.get_running_loop()
    free, answers, opened = [], [], 0

    def record(status, due):
        answers.append((status, time.perf_counter() - due, due))

    async def one(due):
        nonlocal opened
        if free:
            connection = free.pop()
        else:
            opened += 1
            try:
                _, connection = await loop.create_connection(
                    lambda: Connection(free, record), parts.hostname, parts.port
                )
            except OSError:
                record(0, due)
                return
        connection.send(data, due)

    chance = random.Random(1)
    began = time.perf_counter()
    due, sent, waiting = began, 0, set()
    while due < began + seconds:
        now = time.perf_counter()
        if due > now:
            await asyncio.sleep(due - now)
        else:
            await asyncio.sleep(0)
        task = asyncio.ensure_future(one(due))
        waiting.add(task)
        task.add_done_callback(waiting.discard)
        sent += 1
        due += chance.expovariate(rate)
    sent_s = time.perf_counter() - began
    until = time.perf_counter() + 15
    while len(answers) < sent and time.perf_counter() < until:
        await asyncio.sleep(0.01)
    # Answers after the end of sending do not count as goodput at this load.
    good = [latency for status, latency, due in answers if status == 200 and due + latency < began + sent_s]
    times = sorted(latency for status, latency, _ in answers if status == 200)
    statuses = {}
    for status, *_ in answers:
        statuses[str(status)] = statuses.get(str(status), 0) + 1
    refusals = sorted(latency for status, latency, _ in answers if status in (429, 503))
    return {
        "offered_per_s": round(sent / sent_s, 1),
        "goodput_per_s": round(len(good) / sent_s, 1),
        "statuses": statuses,
        "unanswered": sent - len(answers),
        "connections": opened,
        **{f"p{q}_ms": round(1e3 * times[int(q / 100 * (len(times) - 1))], 3) if times else None for q in (50, 99)},
        "refusal_p99_ms": round(1e3 * refusals[int(0.99 * (len(refusals) - 1))], 1) if refusals else None,
    }


if __name__ == "__main__":
    url, file, rate, seconds = sys.argv[1:]
    print(json.dumps(uvloop.run(drive(url, Path(file).read_bytes(), float(rate), float(seconds)))))
