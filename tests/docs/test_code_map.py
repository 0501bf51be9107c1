"""The code map names every file, and every file says what it is for."""

from __future__ import annotations

import codemap
import pytest


def test_every_module_is_in_the_map(root):
    page = (root / "docs" / "code-map.md").read_text(encoding="utf-8")
    folders = ("app", "panther", "panther_client", "benchmarks", "examples", "scripts", "deploy")
    modules = [path for folder in folders for path in (root / folder).rglob("*.py") if path.stat().st_size]
    known = set(codemap.files("."))
    missing = [
        name
        for name in (path.relative_to(root).as_posix() for path in modules)
        if name in known and f"| `{name}` | " not in page
    ]
    assert not missing, f"run 'make report': {missing}"
    assert page == codemap.page(), "run 'make report'"


def test_a_file_without_a_first_line_is_refused(tmp_path):
    path = tmp_path / "mute.py"
    path.write_text("x = 1\n")
    with pytest.raises(ValueError, match=r"mute\.py: the first line must say what the file is for"):
        codemap.job(path)


def test_the_first_sentence_is_the_job(tmp_path):
    path = tmp_path / "told"
    path.write_text("#!/bin/sh\n# Makes ``tea``, hot | cold.\n# And coffee.\n# usage: told\n")
    assert codemap.job(path) == "Makes `tea`, hot \\| cold."
