"""CONTRIBUTING.md is true: its commands are the Makefile's, its paths are there, 'make check' is what CI runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
PATHS = sorted(
    {
        path
        for path in re.findall(
            r"`((?:app|panther|panther_client|tests|benchmarks|docs|scripts|examples|deploy)/[\w./-]*)`", TEXT
        )
        if "NAME" not in path
    }
)


def test_every_target_is_told_of():
    targets = set(re.findall(r"^([a-z-]+):[^#\n]*## ", MAKEFILE, re.MULTILINE))
    told = set(re.findall(r"`make ([a-z-]+)", TEXT))
    assert targets - {"help"} <= told
    assert told <= targets


def test_check_is_what_ci_runs():
    (check,) = re.findall(r"^check: (.*?) ##", MAKEFILE, re.MULTILINE)
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    steps = re.findall(r"^(?:\s*step '.*' .*make|\w+\(\) \{ .*lane \w+) ([a-z-]+)", script, re.MULTILINE)
    assert set(check.split()) == set(steps)


@pytest.mark.parametrize("path", PATHS)
def test_a_path_is_there(path):
    assert (ROOT / path).exists()


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"])
def test_a_link_of_a_page_at_the_root_leads_somewhere(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!https?:|mailto:|#)([^)#\s]+)", text):
        assert (ROOT / target).exists(), f"{page}: {target}"
