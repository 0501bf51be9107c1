"""The page at /docs and the schema behind it."""

import base64
import hashlib
import re
from urllib.parse import urljoin

import pytest
from helpers import build


def test_the_docs_page_needs_no_other_host(client):
    page = client.get("/docs")
    assert page.status_code == 200
    assert "SwaggerUIBundle" in page.text
    assert not re.search(r"https?://", page.text)
    assets = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert len(assets) >= 3
    for asset in assets:
        assert client.get(asset).status_code == 200, asset
    assert '"validatorUrl": null' in page.text
    assert client.get("/docs/assets/../../../etc/passwd").status_code == 404
    assert client.get("/redoc").status_code == 404


def test_the_docs_page_runs_no_script_but_its_own(client):
    page = client.get("/docs")
    directives = dict(part.strip().split(" ", 1) for part in page.headers["content-security-policy"].split(";"))
    (script,) = re.findall(r"<script>(.*?)</script>", page.text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert directives["script-src"] == f"'self' 'sha256-{digest}'"
    assert {directives[name] for name in ("default-src", "base-uri", "form-action", "frame-ancestors")} == {"'none'"}
    assert directives["connect-src"] == "'self'"
    assert not re.search(r"\son\w+=", page.text)


def test_the_docs_page_works_behind_a_path_prefix(client):
    """Whatever it links to lies below the folder that it lies in, as a browser resolves it."""
    page = client.get("/docs").text
    links = re.findall(r"""(?:src|href)="([^"#]+)"|url: '([^']+)'""", page)
    found = [urljoin("https://proxy.example/prefix/docs", first or second) for first, second in links]
    assert len(found) >= 4
    for url in found:
        assert url.startswith("https://proxy.example/prefix/")
        assert client.get(url.removeprefix("https://proxy.example/prefix")).status_code == 200
    (server,) = client.get("/openapi.json").json()["servers"]
    assert urljoin("https://proxy.example/prefix/openapi.json", server["url"]) == "https://proxy.example/prefix/"


@pytest.mark.parametrize(
    "path",
    ["/docs/", "/predict/", "/stats/", "/v2/", "/v2/models/tiny/infer/", "/dashboard", "/docs/assets", "/models/"],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_trailing_slash_is_no_redirect(client, method, path):
    answer = client.request(method, path, content=b"{}", headers={"host": "proxy.localhost"})
    assert answer.status_code in {404, 405}
    assert "location" not in answer.headers


def operations(client):
    for path, methods in client.get("/openapi.json").json()["paths"].items():
        for method, operation in methods.items():
            yield f"{method.upper()} {path}", operation


EXPECTED = {
    "POST /predict",
    "POST /models/{name}/predict",
    "POST /models/{name}/versions/{version}/predict",
    "GET /models",
    "GET /models/{name}",
    "GET /models/{name}/stats",
    "GET /stats",
    "GET /health/live",
    "GET /health/ready",
    "GET /v2",
    "GET /v2/health/live",
    "GET /v2/health/ready",
    "GET /v2/models/stats",
    "GET /v2/models/{name}",
    "GET /v2/models/{name}/config",
    "GET /v2/models/{name}/ready",
    "GET /v2/models/{name}/stats",
    "GET /v2/models/{name}/versions/{version}",
    "GET /v2/models/{name}/versions/{version}/config",
    "GET /v2/models/{name}/versions/{version}/ready",
    "GET /v2/models/{name}/versions/{version}/stats",
    "POST /v2/models/{name}/infer",
    "POST /v2/models/{name}/versions/{version}/infer",
    "POST /v2/repository/index",
    "POST /v2/repository/models/{name}/load",
    "POST /v2/repository/models/{name}/unload",
}


def test_every_route_is_described(client):
    found = dict(operations(client))
    assert set(found) >= EXPECTED
    for name, operation in found.items():
        assert operation.get("summary"), name
        assert operation.get("description") or "summary" in operation, name
        assert operation.get("tags"), name
    assert len({operation["operationId"] for operation in found.values()}) == len(found)


@pytest.mark.parametrize("name", sorted(name for name in EXPECTED if name.startswith("POST")))
def test_routes_with_a_body_have_an_example_of_it(client, name):
    operation = dict(operations(client))[name]
    if "predict" in name or "infer" in name or "index" in name:
        content = operation["requestBody"]["content"]["application/json"]
        assert "example" in content or "examples" in content


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_answers_have_an_example(client, name):
    answers = dict(operations(client))[name]["responses"]
    content = answers["200"].get("content", {}).get("application/json", {})
    if name.endswith(("/load", "/unload")):
        assert "content" not in answers["200"] or content == {}
    else:
        assert "example" in content or "examples" in content or "example" in str(content), name


def test_every_route_is_in_the_docs(client):
    docs = (build.ROOT / "docs" / "http.md").read_text()
    missing = [name for name, _ in operations(client) if f"`{name}`" not in docs]
    assert not missing


def test_every_status_of_an_error_is_in_the_docs():
    from app.errors import STATUS

    docs = (build.ROOT / "docs" / "http.md").read_text()
    assert all(f"| {status} |" in docs for status in STATUS.values())
