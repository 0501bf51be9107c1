"""The built site: complete, from no other host, and every link within it leads somewhere."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from urllib.parse import unquote, urldefrag, urljoin, urlsplit

import pytest

LOADED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "link": "href"}


class Page(HTMLParser):
    """What a page loads, what it links to, and the places that links can lead to."""

    def __init__(self, text):
        super().__init__()
        self.loads, self.links, self.ids = [], [], set()
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        if "id" in values:
            self.ids.add(values["id"])
        if values.get("href") and tag == "a":
            self.links.append(values["href"])
        wanted = LOADED.get(tag)
        if wanted and values.get(wanted) and values.get("rel") not in ("canonical", "next", "prev"):
            self.loads.append(values[wanted])


@pytest.fixture(scope="module")
def pages(site):
    return {path.relative_to(site).as_posix(): Page(path.read_text(encoding="utf-8")) for path in site.rglob("*.html")}


def test_what_a_reader_looks_for_is_there(pages):
    for name in (
        *("index", "get-started", "choosing", "conversion", "training", "export", "serving", "operations", "scaling"),
        *(
            "gpu",
            "math",
            "counting",
            "limits",
            "results",
            "compared",
            "decisions",
            "migrating",
            "examples",
            "code-map",
            "decisions/0001-parse-numbers-with-pysimdjson",
        ),
        *("reference/http", "reference/settings", "reference/metrics", "reference/model-card", "reference/cli"),
        *("reference/api", "reference/api/panther.nn", "contributing", "security", "changelog"),
    ):
        assert ("index.html" if name == "index" else f"{name}/index.html") in pages, name


def test_nothing_comes_from_another_host(pages, site):
    for name, page in pages.items():
        strange = [
            target for target in page.loads if urlsplit(target).scheme in ("http", "https") or "//" in target[:2]
        ]
        assert not strange, f"{name}: {strange}"
    for path in site.rglob("*.css"):
        assert not re.search(r"url\(\s*['\"]?(https?:)?//", path.read_text(encoding="utf-8")), path.name


def test_every_link_within_the_site_leads_somewhere(pages, site):
    for name, page in pages.items():
        if name == "404.html":
            continue  # its links are absolute, for wherever it is shown
        for link in page.links:
            target, fragment = urldefrag(urljoin(f"http://site/{name}", link))
            parts = urlsplit(target)
            if parts.netloc != "site" or parts.scheme != "http":
                continue
            path = unquote(parts.path).lstrip("/")
            if path.endswith("/") or not path:
                path += "index.html"
            assert (site / path).is_file(), f"{name}: {link}"
            if fragment and path in pages:
                assert unquote(fragment) in pages[path].ids | {"__skip", "top"}, f"{name}: {link}"


def test_the_api_is_documented_from_the_docstrings(site):
    page = (site / "reference/api/panther.nn/index.html").read_text(encoding="utf-8")
    for name in ("panther.nn.SKLinear", "panther.nn.SKLinear.from_linear", "panther.nn.ProgressiveSKLinear"):
        assert f'id="{name}"' in page
    listed, described = page.index("Classes:"), page.index('id="panther.nn.ProgressiveSKLinear"')
    assert "#panther.nn.ProgressiveSKLinear" in page[listed:described], "members are listed before they are described"
    assert "&gt;&gt;&gt;" not in re.sub(r"<pre>.*?</pre>", "", page, flags=re.DOTALL), "a doctest is shown as text"
