"""Log lines whose reader stops, goes away or comes back."""

import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from app.telemetry.log_writer import FLUSH_S, LogWriter

ROOT = Path(__file__).parents[4]
LIMIT_S = 60


@contextmanager
def pipe(max_bytes=10_000):
    """A writer to a pipe, its logger, and the pipe's other end."""
    reader, descriptor = os.pipe()
    writer = LogWriter(descriptor, max_bytes)
    log = logging.Logger("test")  # of no hierarchy
    log.addHandler(writer)
    try:
        yield writer, log, reader
    finally:
        os.set_blocking(reader, False)
        with open(reader, "rb", closefd=False) as rest:
            while not writer.idle:
                rest.read()
        os.close(reader)
        os.close(descriptor)


def read_until(reader, wanted):
    found = b""
    end = time.monotonic() + LIMIT_S
    while wanted not in found:
        assert time.monotonic() < end, found[-500:]
        found += os.read(reader, 65536)
    return found


def test_lines_come_in_their_order():
    with pipe() as (_, log, reader):
        for number in range(100):
            log.warning("line %d é\udc80", number)
        lines = read_until(reader, b"line 99").decode().splitlines()
    assert lines == [f"line {number} é\\udc80" for number in range(100)]


def test_a_reader_that_stops_blocks_nobody_and_is_told_what_it_missed():
    with pipe() as (writer, log, reader):
        began = time.monotonic()
        for _ in range(3000):
            log.warning("x" * 99)
        assert time.monotonic() - began < LIMIT_S
        assert writer.dropped > 1000
        found = read_until(reader, b"dropped")
        os.set_blocking(reader, False)
        end = time.monotonic() + LIMIT_S
        while not writer.idle:
            assert time.monotonic() < end
            with suppress(BlockingIOError):
                found += os.read(reader, 65536)
        log.warning("the end")  # there is room for it now
        os.set_blocking(reader, True)
        lines = (found + read_until(reader, b"the end")).decode()
    counts = re.findall(r"^(\d+) lines of the log were dropped, because it was not read or .*$", lines, re.M)
    assert sum(map(int, counts)) == writer.dropped
    # Every line is there whole, or counted.
    assert lines.count("x" * 99 + "\n") + writer.dropped == 3000


def test_a_flush_waits_for_a_moment_only():
    with pipe(max_bytes=2**20) as (writer, log, _):
        for _ in range(2000):  # more than the pipe takes
            log.warning("x" * 99)
        began = time.monotonic()
        writer.flush()
        assert FLUSH_S * 0.9 < time.monotonic() - began < FLUSH_S + LIMIT_S / 2


def test_what_can_not_be_written_is_counted_and_told_once_it_can(tmp_path):
    path = tmp_path / "log"
    with path.open("wb") as stream, Path("/dev/full").open("wb") as full:
        descriptor = os.dup(full.fileno())
        writer = LogWriter(descriptor)
        log = logging.Logger("test")
        log.addHandler(writer)
        log.warning("lost")
        end = time.monotonic() + LIMIT_S
        while not writer.dropped:
            assert time.monotonic() < end
            time.sleep(0.01)
        os.dup2(stream.fileno(), descriptor)  # there is room again
        log.warning("kept")
        while b"dropped" not in path.read_bytes():
            assert time.monotonic() < end
            time.sleep(0.01)
        os.close(descriptor)
    assert path.read_text().splitlines() == [
        "kept",
        "1 lines of the log were dropped, because it was not read or could not be written",
    ]


def test_a_record_that_can_not_be_formatted_is_a_line_all_the_same():
    with pipe() as (_, log, reader):
        log.warning("%d", "text")
        assert b"can't be formatted: TypeError" in read_until(reader, b"\n")


def test_a_signal_handler_may_log_at_any_moment():
    with pipe(max_bytes=2**24) as (_, log, reader):
        count = [0]

        def handle(*_):
            count[0] += 1
            log.warning("from the handler")

        draining = threading.Thread(target=read_until, args=(reader, b"the end"))
        draining.start()
        before = signal.signal(signal.SIGALRM, handle)
        signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
        try:
            end = time.monotonic() + LIMIT_S
            while count[0] < 200:
                assert time.monotonic() < end
                log.warning("from the main thread")
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        log.warning("the end")
        draining.join(LIMIT_S)
        assert not draining.is_alive()


@pytest.mark.parametrize("last", ["raise RuntimeError('defect')", "threading.Thread(target=lambda: 1 / 0).start()", ""])
def test_the_last_words_of_a_process_can_not_hang_it(last):
    program = (
        "import logging, threading, sys, warnings\n"
        "from app.telemetry.logs import configure_logging\n"
        "configure_logging('info', 'json')\n"
        "for _ in range(20_000): logging.error('x' * 999)\n"
        "warnings.warn('mind')\n"
        f"{last}\n"
    )
    reader, writer = os.pipe()
    try:
        process = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stderr=writer)
        assert process.wait(LIMIT_S) == (1 if last.startswith("raise") else 0)
    finally:
        os.close(writer)
        os.close(reader)
