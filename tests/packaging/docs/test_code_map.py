"""The code map names every file, and every file states its purpose."""

from __future__ import annotations

import re

import codemap
import pytest

FOLDERS = ("app", "panther", "panther_client", "benchmarks", "examples", "scripts", "deploy")


def sections(page):
    """The map as {folder: (purpose, {file: purpose})}."""
    found = {}
    for part in re.split(r"^#{2,3} ", page, flags=re.MULTILINE)[1:]:
        heading, _, rest = part.partition("\n")
        rows = dict(re.findall(r"^\| `([^`]+)` \| (.+) \|$", rest, re.MULTILINE))
        found[heading.strip("`/")] = rest.strip().partition("\n")[0], rows
    return found


def test_every_module_is_in_the_section_of_its_folder(root):
    page = (root / "docs" / "code-map.md").read_text(encoding="utf-8")
    known, mapped = set(codemap.files(".")), sections(page)
    modules = [path for folder in FOLDERS for path in (root / folder).rglob("*.py") if path.stat().st_size]
    missing = []
    for path in modules:
        name = path.relative_to(root).as_posix()
        folder = name.rpartition("/")[0]
        if name not in known:
            continue
        purpose, rows = mapped.get(folder, ("", {}))
        if not (purpose if path.name == "__init__.py" else rows.get(path.name)):
            missing.append(name)
    assert not missing, f"run 'make report': {missing}"
    assert page == codemap.page(), "run 'make report'"


def test_a_folder_comes_before_its_subfolders_and_a_package_has_its_purpose():
    names = ["app/a.py", "app/engine/codec/b.py", "app/engine/c.py", "app/http/d.py"]
    assert list(codemap.by_folder(names)) == ["app", "app/engine", "app/engine/codec", "app/http"]
    text = codemap.section("app/engine", ["__init__.py", "batcher.py"])
    assert text.startswith("### `app/engine/`\n\n")
    assert "__init__" not in text
    assert len(text.splitlines()[2]) > 10


def test_a_file_without_a_first_line_is_refused(tmp_path):
    path = tmp_path / "mute.py"
    path.write_text("x = 1\n")
    with pytest.raises(ValueError, match=r"mute\.py: the first line must say what the file is for"):
        codemap.job(path)


def test_the_first_sentence_is_the_job(tmp_path):
    path = tmp_path / "told"
    path.write_text("#!/bin/sh\n# Makes ``tea``, hot | cold.\n# And coffee.\n# usage: told\n")
    assert codemap.job(path) == "Makes `tea`, hot \\| cold."
