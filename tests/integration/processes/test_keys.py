"""API keys of a real server with several workers: from a file, exchanged while it runs, and shown nowhere."""

import json
import re
import subprocess
import sys

import httpx
from helpers import processes

FIRST, SECOND, CONTROL = "first-key-0123456789", "second-key-0123456789", "control-key-0123456789"


def statuses(server, key, times=12):
    """Of many connections, which reach every worker."""
    found = set()
    for _ in range(times):
        headers = {"authorization": f"Bearer {key}"} if key else {}
        body = {"inputs": [[0] * 6]}
        found.add(httpx.post(f"{server.url}/models/m/predict", json=body, headers=headers, timeout=60).status_code)
    return found


def test_keys_of_a_file_hold_in_every_worker_and_are_exchanged_without_a_restart(tmp_path):
    models, keys, config = tmp_path / "models", tmp_path / "keys", tmp_path / "panther.toml"
    processes.put(models, processes.linear(7.0), "m", 1)
    keys.write_text(f"# the shop\n{FIRST}\n")
    config.write_text(f'predict_keys_file = "{keys}"\nlog_format = "json"\nmodel_control = "explicit"\n')
    with processes.running(models, "--config", config, workers=2, PANTHER_CONTROL_KEYS=CONTROL) as server:
        assert (statuses(server, FIRST), statuses(server, SECOND), statuses(server, None)) == ({200}, {401}, {401})
        load = f"{server.url}/v2/repository/models/m/load"
        assert httpx.post(load, headers={"x-api-key": FIRST}, timeout=60).status_code == 403
        assert httpx.post(load, headers={"x-api-key": CONTROL}, timeout=60).status_code == 200
        keys.write_text(f"{SECOND}\n")
        server.wait_for(lambda: statuses(server, FIRST) == {401})
        assert (statuses(server, SECOND), statuses(server, CONTROL)) == ({200}, {200})
        lines = [json.loads(line) for line in server.log.splitlines()]
        told = [line for line in lines if "settings" in line]
        assert len(told) == 1
        assert told[0]["settings"]["control_keys"] == "********"
        assert told[0]["settings_from"]["predict_keys_file"] == "file"
        assert told[0]["settings_from"]["control_keys"] == "PANTHER_CONTROL_KEYS"
        assert not any(key in server.log for key in (FIRST, SECOND, CONTROL))
        assert server.end() == 0


def test_what_is_wrong_with_the_keys_ends_the_server_before_it_starts(tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("short\n")
    ended = subprocess.run(
        [sys.executable, "-m", "app", "--predict-keys-file", keys, "--workers", "2", "--port", "0"],
        cwd=processes.ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert ended.returncode == 1
    assert f"error: line 1 of '{keys}': a key has 5 characters; at least 16 are required" in ended.stderr
    assert "listening" not in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_public_address_without_keys_is_warned_of(tmp_path):
    with subprocess.Popen(
        [sys.executable, "-m", "app", "--host", "0.0.0.0", "--port", "0", "--model-dir", tmp_path, "--model-control",
         "explicit"],
        cwd=processes.ROOT, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        lines = []
        while not lines or "listening on http" not in lines[-1]:
            lines.append(process.stderr.readline())
            assert lines[-1], lines
        process.terminate()
        process.stderr.read()
    warnings = [line for line in lines if " WARNING " in line]
    assert any(re.search(r"listening on 0\.0\.0\.0 without API keys: all clients", line) for line in warnings)
    assert any("model_control is explicit without API keys on 0.0.0.0" in line for line in warnings)
