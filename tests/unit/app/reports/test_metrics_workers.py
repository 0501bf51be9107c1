"""Metrics of several worker processes: whole whichever answers, and never falling when one dies."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

ROOT = Path(__file__).parents[4]
ROW = [0.5, -1.0, 2.0, 0.25, 0.0, 1.5]


@pytest.fixture
def server(tiny_dir, tmp_path):
    log = tmp_path / "log"
    arguments = ["--port", "0", "--model-dir", str(tiny_dir), "--num-threads", "1", "--workers", "2"]
    with log.open("w") as stream:
        process = subprocess.Popen([sys.executable, "-m", "app", *arguments], cwd=ROOT, stderr=stream)
    try:
        wait_for(lambda: log.read_text().count("ready: ") == 2)
        yield process, re.search(r"http://127.0.0.1:\d+", log.read_text())[0]
    finally:
        process.terminate()
        process.wait(60)


def wait_for(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def ask(url, path, **options):
    """By a connection of its own, so that any worker may answer."""
    with httpx.Client(timeout=60) as client:
        answer = client.request("POST" if options else "GET", url + path, **options)
        assert answer.status_code in {200, 404}
        return answer.text


def scrape(url):
    samples = [sample for family in text_string_to_metric_families(ask(url, "/metrics")) for sample in family.samples]
    names = {"panther_requests_total", "panther_rows_total", "panther_unrouted_requests_total", "panther_workers"}
    names |= {"panther_request_seconds_count", "panther_batch_rows_sum", "process_cpu_seconds_total"}
    return {(one.name, *sorted(one.labels.items())): one.value for one in samples if one.name in names}


def total(found, name):
    return sum(value for key, value in found.items() if key[0] == name)


def workers(process):
    found = []
    for entry in Path("/proc").iterdir():
        try:
            parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1]) if entry.name.isdigit() else 0
            if parent == process.pid and "spawn_main" in (entry / "cmdline").read_text():
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def test_counters_are_whole_and_survive_a_worker(server):
    process, url = server
    for index in range(30):
        ask(url, "/predict", json={"inputs": [ROW] * 2})
        if index % 3 == 0:
            ask(url, "/models/nobody/predict", json={"inputs": [ROW]})
    scrapes = [scrape(url) for _ in range(12)]
    for found in scrapes:
        assert total(found, "panther_workers") == 2
        assert total(found, "panther_requests_total") == total(found, "panther_request_seconds_count") == 30
        assert total(found, "panther_rows_total") == total(found, "panther_batch_rows_sum") == 60
        assert total(found, "panther_unrouted_requests_total") == 10

    killed = workers(process)[0]
    os.kill(killed, signal.SIGKILL)
    # until all of its threads have ended, its socket takes connections
    wait_for(lambda: not Path(f"/proc/{killed}").exists())
    after = scrape(url)
    assert total(after, "panther_requests_total") == 30
    wait_for(lambda: total(scrape(url), "panther_workers") == 2)
    for _ in range(10):
        ask(url, "/predict", json={"inputs": [ROW]})
    last = [scrape(url) for _ in range(8)]
    for found in last:
        assert total(found, "panther_requests_total") == 40
        for key, value in scrapes[-1].items():
            if key[0].endswith(("_total", "_count", "_sum")):
                assert found[key] >= value, key
