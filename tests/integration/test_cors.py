"""Pages of other origins: off unless asked for, and alike for every path, way through the server and status."""

import asyncio

import httpx
import pytest
from helpers import build

from app.application import create_app
from app.config.settings import Settings
from app.config.settings_file import SettingsError
from app.config.settings_sources import read_settings

ROW = [0.5, -1.0, 2.0, 0.25, 0.0, 1.5]
PAGE, OTHER = "https://a.example", "https://b.example"
KEY = "predict-key-0123456789"
PREFLIGHT = {
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization, content-type, inference-header-content-length, x-api-key",
}
GOOD, BAD = {"inputs": [ROW]}, {"inputs": 3}


@pytest.fixture(scope="module")
def shared(tiny_dir):
    with build.running(tiny_dir, cors_origins=f"{PAGE}, https://c.example:8443", predict_keys=KEY) as client:
        yield client


CASES = [
    ("POST", "/predict", GOOD, KEY, 200),
    ("POST", "/predict", BAD, KEY, 400),
    ("POST", "/predict", GOOD, None, 401),
    ("POST", "/models/none/predict", GOOD, KEY, 404),
    ("POST", "/v2/models/tiny/infer", BAD, KEY, 400),
    ("GET", "/stats", None, KEY, 200),
    ("GET", "/stats", None, None, 401),
    ("GET", "/health/ready", None, None, 200),
    ("GET", "/nothing", None, KEY, 404),
    ("GET", "/predict", None, KEY, 405),
    ("POST", "/v2/repository/models/tiny/load", None, KEY, 403),
]


def ask(client, method, path, body, key, **headers):
    if key:
        headers["x-api-key"] = key
    return client.request(method, path, json=body, headers=headers)


@pytest.mark.parametrize(("method", "path", "body", "key", "status"), CASES)
def test_a_page_of_a_named_origin_may_read_every_answer(shared, method, path, body, key, status):
    answer = ask(shared, method, path, body, key, origin=PAGE)
    assert answer.status_code == status
    assert answer.headers["access-control-allow-origin"] == PAGE
    assert "Origin" in answer.headers["vary"]
    assert "X-Request-ID" in answer.headers["access-control-expose-headers"]
    assert answer.headers["x-request-id"]
    assert "access-control-allow-credentials" not in answer.headers


@pytest.mark.parametrize("origin", [OTHER, "http://a.example", "https://a.example.evil.example", "null"])
@pytest.mark.parametrize(("method", "path", "body", "key", "status"), CASES[:3])
def test_a_page_of_another_origin_may_not(shared, origin, method, path, body, key, status):
    answer = ask(shared, method, path, body, key, origin=origin)
    assert answer.status_code == status
    assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize("path", ["/predict", "/v2/models/tiny/infer", "/stats", "/v2/repository/models/tiny/load"])
def test_a_preflight_needs_no_key_and_names_what_is_allowed(shared, path):
    answer = shared.options(path, headers={"origin": PAGE, **PREFLIGHT})
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == PAGE
    assert answer.headers["access-control-allow-methods"] == "GET, POST"
    allowed = answer.headers["access-control-allow-headers"].lower()
    assert all(name.strip() in allowed for name in PREFLIGHT["access-control-request-headers"].split(","))
    refused = shared.options(path, headers={"origin": OTHER, **PREFLIGHT})
    assert refused.status_code == 400
    assert "access-control-allow-origin" not in refused.headers


def test_requests_without_an_origin_are_as_ever_and_let_no_page_in_after_them(shared):
    """Heads are remembered; one with an origin never is."""
    for _ in range(3):
        plain = ask(shared, "POST", "/predict", GOOD, KEY)
        assert plain.status_code == 200
        assert "access-control-allow-origin" not in plain.headers
        assert ask(shared, "POST", "/predict", GOOD, KEY, origin=PAGE).headers["access-control-allow-origin"] == PAGE


def test_a_star_is_every_origin(tiny_dir):
    with build.running(tiny_dir, cors_origins="*") as client:
        for path, body in (("/predict", GOOD), ("/predict", BAD)):
            assert client.post(path, json=body, headers={"origin": OTHER}).headers["access-control-allow-origin"] == "*"
        assert client.options("/predict", headers={"origin": OTHER, **PREFLIGHT}).status_code == 200


def test_off_by_default(client):
    for method, path in (("POST", "/predict"), ("GET", "/stats")):
        answer = client.request(method, path, json=GOOD, headers={"origin": PAGE})
        assert answer.status_code == 200
        assert not [name for name in answer.headers if name.startswith("access-control")]
    assert client.options("/predict", headers={"origin": PAGE, **PREFLIGHT}).status_code == 405


def test_a_defect_of_the_server_is_readable_too(tiny_dir):
    async def fail():
        application = create_app(Settings(model_dir=tiny_dir, cors_origins=PAGE))
        application.add_api_route("/broken", lambda: 1 / 0)
        transport = httpx.ASGITransport(application, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            return await client.get("/broken", headers={"origin": PAGE})

    answer = asyncio.run(fail())
    assert (answer.status_code, answer.json()) == (500, {"error": "internal error"})
    assert answer.headers["access-control-allow-origin"] == PAGE


@pytest.mark.parametrize(
    "origins", ["a.example", "https://a.example/", "https://a.example/x", "ftp://a.example", "*,x"]
)
def test_what_is_no_origin_is_refused(origins):
    with pytest.raises(
        SettingsError, match=r"PANTHER_CORS_ORIGINS \(or --cors-origins\): .* must be \*, or origins such"
    ):
        read_settings(["--cors-origins", origins])


LOAD = "/v2/repository/models/tiny/load"


@pytest.mark.parametrize("path", [LOAD, "/v2/repository/models/tiny/unload", "/models/tiny/benchmark"])
@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_a_page_elsewhere_can_change_nothing_on_a_server_of_the_same_machine(tiny_dir, path, site):
    """What a browser sends without asking first: a form, to a server that asks for no key."""
    form = {"sec-fetch-site": site, "origin": OTHER, "content-type": "text/plain"}
    with build.running(tiny_dir, model_control="explicit", cors_origins=PAGE) as client:
        answer = client.post(path, content="{}", headers=form)
        assert answer.status_code == 403
        assert answer.json()["error"].startswith(f"a page of {OTHER} may not change the served models")
        assert client.post(path, content="{}", headers={"sec-fetch-site": site}).status_code == 403
        assert client.post("/predict", json=GOOD).status_code == 200


def test_the_own_page_named_origins_and_programs_can(tiny_dir):
    with build.running(tiny_dir, model_control="explicit", cors_origins=PAGE) as client:
        own = {"sec-fetch-site": "same-origin", "origin": str(client.base_url)}
        for headers in (own, {"sec-fetch-site": "none"}, {"sec-fetch-site": "cross-site", "origin": PAGE}, {}):
            assert client.post(LOAD, headers=headers).status_code == 200
        # Behind a proxy the page's origin is not the server's address.
        assert client.post(LOAD, headers={**own, "origin": "https://proxy.example"}).status_code == 200
        assert client.post("/v2/repository/index", headers={"sec-fetch-site": "cross-site"}).status_code == 200
