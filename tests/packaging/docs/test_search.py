"""The site's search finds what people look for, by the words that they know."""

from __future__ import annotations

import json
import re

import pytest

WORDS = (
    *("dynamic batching", "graceful shutdown", "rollback", "authentication", "health checks", "monitoring"),
    *("troubleshooting", "FAQ", "quantization", "int8", "pandas", "CSV", "regression", "slowloris", "zero-copy"),
    *("hot reload", "GPU", "Kubernetes"),
)
HEADINGS = (
    *("dynamic batching", "graceful shutdown", "rolling back", "authentication", "health checks", "monitoring"),
    *("troubleshooting", "FAQ", "int8", "pandas", "regression", "hot reload", "GPU", "Kubernetes", "runbook"),
)


@pytest.fixture(scope="module")
def sections(site):
    """Title and text of each section of the guide, as the search has them; the changelog and decisions do not count."""
    documents = json.loads((site / "search" / "search_index.json").read_text(encoding="utf-8"))["docs"]
    guide = [one for one in documents if not re.match(r"(changelog|decisions|code-map|reference)/", one["location"])]
    return [(one["title"].lower(), one["text"].lower()) for one in guide]


@pytest.mark.parametrize("word", WORDS)
def test_the_search_finds(sections, word):
    assert any(word.lower() in title or word.lower() in text for title, text in sections)


@pytest.mark.parametrize("word", HEADINGS)
def test_it_is_a_heading(sections, word):
    assert any(word.lower() in title for title, _ in sections)
