"""The page at / as files: what needs no browser to be seen."""

import re
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "app" / "http" / "dashboard"
FILES = sorted(path for path in FOLDER.rglob("*") if path.is_file())
SVG_NAMESPACE = "http://www.w3.org/2000/svg"


def test_the_page_is_at_the_root_alone(client):
    answer = client.get("/")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/html")
    assert client.get("/dashboard/index.html").status_code == 404
    assert client.get("/dashboard/../schemas.py").status_code == 404
    assert client.get("/dashboard/%2e%2e/schemas.py").status_code == 404
    assert client.get("/dashboard/none.js").json() == {
        "error": "unknown path '/dashboard/none.js'; /docs lists the paths"
    }


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_nothing_points_to_another_host(path):
    assert re.findall(r"(?:https?:)?//[a-z0-9.-]+\.[a-z]{2,}", path.read_text().replace(SVG_NAMESPACE, "")) == []


@pytest.mark.parametrize("path", [path for path in FILES if path.suffix == ".js"], ids=lambda path: path.name)
def test_every_import_is_there_and_markup_is_never_made_of_text(path):
    text = path.read_text()
    for name in re.findall(r'from "(\.[^"]+)"', text):
        assert (path.parent / name).is_file()
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(", text)


def test_the_page_holds_no_code_and_no_style_of_its_own(client):
    text = client.get("/").text
    assert not re.search(r"<script(?![^>]*src=)|<style|\sstyle=|\son[a-z]+=", text)
    for asset in re.findall(r'(?:src|href)="(dashboard/[^"]+)"', text):
        answer = client.get(f"/{asset}")
        assert answer.status_code == 200, asset
        assert "content-security-policy" in answer.headers


def test_what_has_not_changed_is_not_sent_again(client):
    first = client.get("/dashboard/main.js")
    again = client.get("/dashboard/main.js", headers={"if-none-match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert "content-security-policy" in again.headers
