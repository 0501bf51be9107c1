"""API keys: what each opens, on the quick way and on FastAPI's, and what is told of them."""

import asyncio
import hashlib
import json
import logging
import os
import re

import httpx
import pytest
from helpers import build

from app.application import create_app
from app.config.settings import Settings
from app.config.settings_file import SettingsError
from app.config.settings_sources import effective, read_settings
from app.errors import AccessForbiddenError, UnauthorizedError
from app.service.access import Access, Keys, warn_of_open_doors
from app.telemetry.logs import configure_logging, log_settings

ROW = [0.5, -1.0, 2.0, 0.25, 0.0, 1.5]
PREDICT, SECOND, CONTROL = "predict-key-0123456789", "second-key-0123456789", "control-key-0123456789"
DIGEST = "sha256:" + hashlib.sha256(SECOND.encode()).hexdigest()

READS = ["/stats", "/models", "/models/tiny", "/models/tiny/stats", "/v2", "/v2/models/tiny", "/v2/models/stats"]
OPEN = [
    "/",
    "/docs",
    "/openapi.json",
    "/health/live",
    "/health/ready",
    "/v2/health/live",
    "/v2/health/ready",
    "/metrics",
]
INFERENCE = ["/predict", "/models/tiny/predict", "/models/tiny/versions/1/predict", "/v2/models/tiny/infer"]
CHANGES = ["/v2/repository/models/tiny/load", "/v2/repository/models/tiny/unload", "/models/tiny/benchmark"]


def bearer(key):
    return {"authorization": f"Bearer {key}"}


def header(key):
    return {"x-api-key": key}


@pytest.fixture(scope="module")
def guarded(tiny_dir):
    with build.running(
        tiny_dir,
        predict_keys=f"{PREDICT}, {DIGEST}",
        control_keys=CONTROL,
        model_control="explicit",
    ) as client:
        yield client


def infer(path):
    tensor = {"name": "x", "shape": [1, 6], "datatype": "FP32", "data": ROW}
    return {"inputs": [tensor]} if path.endswith("infer") else {"inputs": [ROW]}


@pytest.mark.parametrize("path", OPEN)
def test_probes_the_page_and_metrics_answer_everybody(guarded, path):
    assert guarded.get(path).status_code == 200


@pytest.mark.parametrize("path", [*READS, "/nothing", "/v2/models/none", "/predict"])
def test_reading_needs_a_key(guarded, path):
    answer = guarded.get(path)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == 'Bearer realm="panther"'
    assert answer.json() == {
        "error": "an API key is required; send one as 'Authorization: Bearer KEY' or 'X-API-Key: KEY'"
    }
    assert answer.headers["x-request-id"]
    assert (
        guarded.get(path, headers=bearer(PREDICT)).status_code == guarded.get(path, headers=header(CONTROL)).status_code
    )
    assert guarded.get(path, headers=bearer(PREDICT)).status_code != 401


@pytest.mark.parametrize("path", INFERENCE)
@pytest.mark.parametrize("key", [PREDICT, SECOND, CONTROL])
@pytest.mark.parametrize("how", [bearer, header, lambda key: {"Authorization": f"bearer   {key}"}])
def test_inference_takes_any_key_however_sent(guarded, path, key, how):
    assert guarded.post(path, json=infer(path), headers=how(key)).status_code == 200


@pytest.mark.parametrize("path", INFERENCE)
@pytest.mark.parametrize(
    ("headers", "challenge"),
    [
        ({}, 'Bearer realm="panther"'),
        ({"authorization": "Bearer"}, 'Bearer realm="panther"'),
        ({"authorization": f"Basic {PREDICT}"}, 'Bearer realm="panther"'),
        ({"authorization": PREDICT}, 'Bearer realm="panther"'),
        (bearer(PREDICT[:-1]), 'Bearer realm="panther", error="invalid_token"'),
        (bearer(PREDICT + "x"), 'Bearer realm="panther", error="invalid_token"'),
        (bearer(PREDICT.upper()), 'Bearer realm="panther", error="invalid_token"'),
        (header(DIGEST), 'Bearer realm="panther", error="invalid_token"'),
        (header(DIGEST.removeprefix("sha256:")), 'Bearer realm="panther", error="invalid_token"'),
        ({"x-api-key": b"\xff\xfe" * 20}, 'Bearer realm="panther", error="invalid_token"'),
    ],
)
def test_inference_refuses_every_other_key(guarded, path, headers, challenge):
    answer = guarded.post(path, json=infer(path), headers=headers)
    assert (answer.status_code, answer.headers["www-authenticate"]) == (401, challenge)
    assert answer.headers["x-request-id"]
    assert list(answer.json()) == ["error"]


def test_a_head_that_was_let_in_lets_no_other_in(guarded):
    """Heads are remembered byte for byte, keys too: let in with its key, refused without, let in again."""
    for _ in range(3):
        assert guarded.post("/predict", json=infer("/predict"), headers=bearer(PREDICT)).status_code == 200
        assert guarded.post("/predict", json=infer("/predict")).status_code == 401
        assert guarded.post("/predict", json=infer("/predict"), headers=bearer(PREDICT[:-1] + "X")).status_code == 401


@pytest.mark.parametrize("path", CHANGES)
def test_changing_what_is_served_needs_a_key_for_it(guarded, path):
    assert guarded.post(path).status_code == 401
    wrong = guarded.post(path, headers=bearer("no-such-key-0123456789"))
    assert (wrong.status_code, "invalid_token" in wrong.headers["www-authenticate"]) == (401, True)
    refused = guarded.post(path, headers=bearer(PREDICT))
    assert refused.status_code == 403
    assert refused.json() == {"error": "this API key allows inference, but not to load, unload or benchmark models"}
    assert "www-authenticate" not in refused.headers


def test_the_key_for_control_loads_and_unloads(guarded):
    for action, status in (("unload", 503), ("load", 200)):
        path = f"/v2/repository/models/tiny/{action}"
        assert guarded.post(path, headers=header(CONTROL)).status_code == 200
        assert guarded.post("/predict", json=infer("/predict"), headers=header(PREDICT)).status_code in {status, 404}
    assert guarded.post("/v2/repository/index", headers=header(PREDICT)).status_code == 200
    assert guarded.post("/v2/repository/index").status_code == 401


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
@pytest.mark.parametrize(
    "path",
    ["/nothing", "/v2/repository/models/tiny/load%0a", "//v2/repository/models/tiny/load", "/health/x", "/stats"],
)
def test_what_is_not_known_to_be_harmless_needs_the_key_for_control(guarded, method, path):
    assert guarded.request(method, path).status_code == 401
    assert guarded.request(method, path, headers=bearer(PREDICT)).status_code == 403


def test_a_refused_body_is_not_read(guarded):
    """Announced, not sent: the answer comes all the same."""
    for path in ("/predict", "/v2/repository/models/tiny/load"):
        import socket

        with socket.create_connection((guarded.base_url.host, guarded.base_url.port), timeout=60) as wire:
            wire.sendall(f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n".encode())
            answer = b""
            while piece := wire.recv(65536):
                answer += piece
        assert answer.startswith(b"HTTP/1.1 401")
        assert b"connection: close" in answer


def test_refusals_are_counted(guarded):
    def refused():
        text = guarded.get("/metrics").text
        return sum(float(n) for n in re.findall(r"^panther_\w+\{[^}]*UnauthorizedError[^}]*\} ([\d.]+)$", text, re.M))

    before = refused()
    guarded.post("/predict", json=infer("/predict"))
    assert refused() == before + 1


def test_metrics_may_need_a_key_too(tiny_dir):
    with build.running(tiny_dir, predict_keys=PREDICT, protect_metrics=True) as client:
        assert client.get("/metrics").status_code == 401
        assert client.get("/metrics", headers=bearer(PREDICT)).status_code == 200
        assert client.get("/health/ready").status_code == 200


def test_with_keys_for_control_alone_asking_is_free(tiny_dir):
    with build.running(tiny_dir, control_keys=CONTROL, model_control="explicit") as client:
        assert client.post("/predict", json=infer("/predict")).status_code == 200
        assert client.get("/stats").status_code == 200
        assert client.post(CHANGES[0]).status_code == 401
        assert client.post(CHANGES[0], headers=bearer(PREDICT)).status_code == 401
        assert client.post(CHANGES[0], headers=bearer(CONTROL)).status_code == 200
        security = client.get("/openapi.json").json()["paths"]
        assert "security" not in security["/predict"]["post"]
        assert security["/v2/repository/models/{name}/load"]["post"]["security"]


def test_with_keys_for_predicting_alone_nobody_controls(tiny_dir):
    with build.running(tiny_dir, predict_keys=PREDICT, model_control="explicit") as client:
        answer = client.post(CHANGES[0], headers=bearer(PREDICT))
        assert answer.status_code == 403
        assert "set PANTHER_CONTROL_KEYS_FILE or PANTHER_CONTROL_KEYS" in answer.json()["error"]


def test_without_keys_nothing_is_asked_for(client):
    assert client.post("/predict", json=infer("/predict"), headers=bearer("whatever")).status_code == 200
    assert client.post(CHANGES[0]).json()["error"].startswith("model_control is none")
    schema = client.get("/openapi.json").json()
    assert set(schema["components"]["securitySchemes"]) == {"bearer", "key"}
    assert not any("security" in item for path in schema["paths"].values() for item in path.values())


def test_the_schema_tells_which_operations_need_a_key(guarded):
    paths = guarded.get("/openapi.json").json()["paths"]
    needing = {f"{method} {path}" for path, item in paths.items() for method, op in item.items() if "security" in op}
    every = {f"{method} {path}" for path, item in paths.items() for method in item}
    assert every - needing == {
        "get /health/live", "get /health/ready", "get /v2/health/live", "get /v2/health/ready", "get /metrics",
    }  # fmt: skip
    assert "401" in paths["/predict"]["post"]["responses"]
    assert paths["/predict"]["post"]["security"] == [{"bearer": []}, {"key": []}]
    controlling = {
        path for path, item in paths.items() for op in item.values()
        if op["responses"].get("403", {}).get("description") == "the API key does not allow this"
    }  # fmt: skip
    assert "/v2/repository/models/{name}/load" in controlling
    inferring = {path for path in paths if path.endswith(("predict", "infer"))}
    assert {"/v1/models/{name}:predict", "/v2/models/{name}/infer", "/predict"} <= inferring
    assert not controlling & inferring


def test_under_another_asgi_server_keys_count_as_well(tiny_dir):
    async def ask():
        application = create_app(Settings(model_dir=tiny_dir, predict_keys=PREDICT))
        application.state.panther.repository.load_all()
        application.state.panther.repository.starting = False
        transport = httpx.ASGITransport(application)
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            return [
                (await client.post("/predict", json={"inputs": [ROW]}, headers=headers)).status_code
                for headers in ({}, bearer(PREDICT), bearer(PREDICT + "x"))
            ]

    assert asyncio.run(ask()) == [401, 200, 401]


def test_every_known_key_is_compared_whether_or_not_one_was_found(monkeypatch):
    seen = []
    monkeypatch.setattr("app.service.access.hmac.compare_digest", lambda a, b: seen.append(a) or a == b)
    keys = Keys("predict_keys", ",".join(f"key-number-{n}-0123456789" for n in range(5)), None)
    for key in ("key-number-0-0123456789", "key-number-4-0123456789", "none"):
        seen.clear()
        keys.has(hashlib.sha256(key.encode()).digest())
        assert len(seen) == 5
        assert all(len(item) == 32 for item in seen)


def test_control_raises_the_right_error_for_each_key():
    access = Access(Keys("predict_keys", PREDICT, None), Keys("control_keys", CONTROL, None))
    access.check_control({b"x-api-key": CONTROL.encode()})
    with pytest.raises(AccessForbiddenError, match="allows inference"):
        access.check_control({b"x-api-key": PREDICT.encode()})
    with pytest.raises(UnauthorizedError, match="is unknown"):
        access.check_control({b"x-api-key": SECOND.encode()})
    with pytest.raises(UnauthorizedError, match="is required"):
        access.check_control({})


# Secrets stay secret.


@pytest.mark.parametrize("form", ["console", "json"])
def test_keys_are_in_no_log_line_and_in_no_error(form, capfd, monkeypatch):
    configure_logging("debug", form)
    try:
        settings = read_settings(["--predict-keys", PREDICT, "--control-keys", CONTROL])
        log_settings(effective(settings))
        logging.getLogger("x").info("%s %r", settings, settings.predict_keys)
        logging.getLogger().handlers[0].flush()
        written = capfd.readouterr().err
    finally:
        logging.basicConfig(level="WARNING", handlers=[], force=True)
    assert "predict_keys" in written
    assert "********" in written
    assert PREDICT not in written
    assert CONTROL not in written
    monkeypatch.setenv("PANTHER_PREDICT_KEYS", "short-secret")
    with pytest.raises(SettingsError, match="predict_keys: a key has 12 characters") as raised:
        Access.of(Settings())
    assert "short-secret" not in str(raised.value)


def test_a_wrong_type_of_key_in_the_file_is_masked(tmp_path):
    file = tmp_path / "panther.toml"
    file.write_text("predict_keys = [12345678901234567890]\n")
    with pytest.raises(SettingsError, match=r"predict_keys in the settings file: \*{8} is not valid") as raised:
        read_settings(["--config", str(file)])
    assert "1234567890" not in str(raised.value)
    file.write_text(f'predict_keys = ["{PREDICT}", "{SECOND}"]\n')
    access = Access.of(read_settings(["--config", str(file)]))
    access.check_predict({b"x-api-key": SECOND.encode()})


@pytest.mark.parametrize(
    ("settings", "warnings"),
    [
        ({"host": "127.0.0.1"}, 0),
        ({"host": "localhost"}, 0),
        ({"host": "::1"}, 0),
        ({"host": "0.0.0.0"}, 1),
        ({"host": "::"}, 1),
        ({"host": "10.1.2.3"}, 1),
        ({"host": "0.0.0.0", "model_control": "explicit"}, 2),
        ({"host": "0.0.0.0", "model_control": "watch"}, 1),
        ({"host": "0.0.0.0", "predict_keys": PREDICT}, 0),
        ({"host": "0.0.0.0", "predict_keys": PREDICT, "model_control": "explicit"}, 0),
    ],
)
def test_a_public_address_without_keys_is_warned_of(settings, warnings, caplog):
    warn_of_open_doors(Settings(**settings))
    found = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert len(found) == warnings
    assert all("PANTHER_" in record.getMessage() and settings["host"] in record.getMessage() for record in found)


def test_the_environment_names_keys(monkeypatch):
    monkeypatch.setenv("PANTHER_PREDICT_KEYS", f"{PREDICT},{SECOND}")
    access = Access.of(Settings())
    access.check_predict({b"x-api-key": SECOND.encode()})
    assert Access.of(Settings(predict_keys=None)) is None or os.environ["PANTHER_PREDICT_KEYS"]
    assert json.loads(Settings().model_dump_json())["predict_keys"] == "**********"
