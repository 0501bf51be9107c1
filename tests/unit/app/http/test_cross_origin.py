"""Who may change what is served: pages by their origin, requests by the host that they name."""

import pytest
from helpers.build import running
from helpers.raw_http import answer, rest, wire

from app.config.settings import Settings
from app.config.settings_file import SettingsError
from app.config.settings_sources import read_settings
from app.errors import AccessForbiddenError
from app.http.cross_origin import CrossOriginGuard

HOST, PAGE, OTHER = "localhost:8000", "http://localhost:8000", "https://evil.example"
LOAD = "/v2/repository/models/tiny/load"
OK = b"HTTP/1.1 200 OK"
KEY = "control-key-0123456789"


def headers(**named):
    return {name.replace("_", "-").encode(): value.encode() for name, value in named.items() if value is not None}


@pytest.mark.parametrize(
    ("origin", "site"),
    [
        (None, None), (None, "none"), (None, "same-origin"), (PAGE, None), (PAGE, "same-origin"),
        ("HTTP://LOCALHOST:8000", None), ("https://localhost:8000", None), ("https://named.example", None),
        ("https://named.example", "cross-site"), ("https://proxy.example", "same-origin"),
    ],
)  # fmt: skip
def test_clients_without_an_origin_own_pages_and_named_ones_may(origin, site):
    guard = CrossOriginGuard(["https://named.example"])
    guard.check(headers(host=HOST, origin=origin, sec_fetch_site=site))


@pytest.mark.parametrize(
    ("origin", "site"),
    [
        (OTHER, None), ("null", None), ("null", "same-origin"), ("null", "cross-site"), (None, "cross-site"),
        (None, "same-site"), (PAGE, "same-site"), (OTHER, "cross-site"), ("http://localhost:9000", None),
        ("http://localhost", None), ("localhost:8000", None), ("http://named.example", None), ("", "cross-site"),
    ],
)  # fmt: skip
def test_other_pages_may_not(origin, site):
    guard = CrossOriginGuard(["https://named.example"])
    with pytest.raises(
        AccessForbiddenError,
        match=r"a page of .* may not change .* add the origin to PANTHER_CORS",
    ):
        guard.check(headers(host=HOST, origin=origin, sec_fetch_site=site))


def test_a_star_lets_every_page():
    for origin in (OTHER, "null", None):
        CrossOriginGuard(["*"]).check(headers(host=HOST, origin=origin, sec_fetch_site="cross-site"))


@pytest.mark.parametrize(
    "host",
    [
        "localhost", "LocalHost:8000", "localhost.", "a.localhost:1", "127.0.0.1", "127.8.9.1:8000", "10.1.2.3:80",
        "[::1]", "[::1]:8000", "[2001:db8::1]:443", "models.example", "MODELS.example:8443", "a.b.pool.example", None,
        "",
    ],
)  # fmt: skip
def test_loopback_names_addresses_and_named_hosts_are_allowed(host):
    CrossOriginGuard(hosts=["models.example", "*.pool.example"]).check(headers(host=host))


@pytest.mark.parametrize(
    "host",
    [
        "evil.example", "evil.example:8000", "localhost.evil.example", "evil-localhost", "127.0.0.1.evil.example",
        "1270.0.0.1", "0x7f.1", "pool.example", "evilpool.example", "models.example.evil.example", "server", "[::1",
        "[evil.example]",
    ],
)  # fmt: skip
def test_other_hosts_are_not(host):
    guard = CrossOriginGuard(hosts=["models.example", "*.pool.example"])
    origin = f"http://{host}"  # with DNS rebinding the page is of the same origin
    with pytest.raises(
        AccessForbiddenError, match=r"for the host '.*' may not change .*; add the host to PANTHER_ALLOWED_HOSTS"
    ):
        guard.check(headers(host=host, origin=origin, sec_fetch_site="same-origin"))


def test_a_star_allows_every_host():
    CrossOriginGuard(hosts=["*"]).check(headers(host="evil.example"))


@pytest.mark.parametrize(
    ("settings", "host", "allowed"),
    [
        ({}, "evil.example", False),
        ({}, "127.0.0.1:8000", True),
        ({"host": "0.0.0.0"}, "server:8000", False),
        ({"host": "models.internal"}, "models.internal:8000", True),
        ({"allowed_hosts": "server, *.example"}, "server:8000", True),
        ({"allowed_hosts": "server, *.example"}, "a.example", True),
        ({"allowed_hosts": "*"}, "evil.example", True),
        ({"control_keys": KEY}, "evil.example", True),
        ({"predict_keys": KEY}, "evil.example", True),
        ({"control_keys": KEY, "allowed_hosts": "server"}, "evil.example", False),
    ],
)
def test_the_settings_say_which_hosts_are_allowed(settings, host, allowed):
    assert CrossOriginGuard(hosts=Settings(**settings).control_hosts()).allows_host(host) == allowed


@pytest.mark.parametrize(
    "hosts", ["http://a.example", "a.example:80", "a.example/", "a..example", "*.", "**", "a b", ","]
)
def test_what_is_no_host_is_refused(hosts):
    said = (
        r"PANTHER_ALLOWED_HOSTS \(or --allowed-hosts\): .* must be \*, or host names such as a.example or \*.a.example"
    )
    with pytest.raises(SettingsError, match=said):
        read_settings(["--allowed-hosts", hosts])


def post(client, path, *fields):
    with wire(client) as sock:
        lines = [f"POST {path} HTTP/1.1", *fields, "Content-Length: 2", "Connection: close", "", ""]
        sock.sendall("\r\n".join(lines).encode() + b"{}")
        return rest(sock)


@pytest.mark.parametrize("path", [LOAD, "/v2/repository/models/tiny/unload", "/models/tiny/benchmark"])
def test_control_is_refused_over_a_socket_and_the_model_stays(tiny_dir, path):
    with running(tiny_dir, model_control="explicit") as client:
        for fields in (
            ("Host: evil.example",),
            ("Host: evil.example", "Origin: http://evil.example", "Sec-Fetch-Site: same-origin"),
            ("Host: localhost", f"Origin: {OTHER}"),
            ("Host: localhost", "Origin: null"),
        ):
            status, sent, document = answer(post(client, path, *fields))
            assert (status, sent["connection"], list(document)) == (403, "close", ["error"])
        assert client.get("/health/ready").status_code == 200
        # What changes nothing is not held to it, nor what isn't there.
        for missing, code in (("/v2/repository/models/tiny", 404), ("/models/tiny", 405), (f"{path}/", 404)):
            assert answer(post(client, missing, "Host: evil.example"))[0] == code
        assert post(client, "/v2/repository/index", "Host: evil.example", "Origin: null").startswith(OK)
        assert post(client, LOAD, "Host: localhost", "Origin: http://localhost").startswith(OK)
