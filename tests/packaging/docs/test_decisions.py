"""docs/decisions: every page has its parts and is in the index; links from and to the code lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "docs" / "decisions"
PAGES = sorted(FOLDER.glob("[0-9]*.md"))
INDEX = (FOLDER / "index.md").read_text(encoding="utf-8")
PARTS = ["Context", "Decision", "Measured", "Rejected", "When to look again"]
OPTIONAL = {"Measured", "Rejected"}


def test_numbers_are_consecutive():
    assert [int(path.name[:4]) for path in PAGES] == list(range(1, len(PAGES) + 1))


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_a_page_has_its_parts_in_order(path):
    text = path.read_text(encoding="utf-8")
    title, date = text.splitlines()[0], text.splitlines()[2]
    assert re.fullmatch(rf"# {path.name[:4]} .+", title)
    assert re.match(r"\d{4}-\d\d-\d\d · `", date)
    found = re.findall(r"^## (.+)$", text, re.MULTILINE)
    assert [part for part in PARTS if part in found] == found
    assert set(PARTS) - set(found) <= OPTIONAL
    for body in re.split(r"^## .+$", text, flags=re.MULTILINE)[1:]:
        assert body.strip(), "a part is empty"
    assert f"| {path.name[:4]} | [{title[7:]}]({path.name}) |" in INDEX


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_the_code_that_a_page_explains_exists(path):
    line = path.read_text(encoding="utf-8").splitlines()[2]
    for name in re.findall(r"`([^`]+)`", line):
        assert (ROOT / name).exists(), name


def test_links_from_the_code_lead_to_pages():
    sources = [path for folder in ("app", "panther", "scripts", "benchmarks") for path in (ROOT / folder).rglob("*.py")]
    links = {
        name
        for path in [*sources, ROOT / "scripts" / "environment", ROOT / "scripts" / "lock"]
        for name in re.findall(r"docs/decisions/\d{4}[a-z0-9-]*\.md", path.read_text(encoding="utf-8"))
    }
    assert len(links) > 5
    assert [name for name in sorted(links) if not (ROOT / name).exists()] == []
