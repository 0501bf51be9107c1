"""MkDocs hooks: add the generated pages, and the pages at the root of the repository."""

from __future__ import annotations

import logging
import os
import re
import sys
from pathlib import Path

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE), str(ROOT)]

import reference  # noqa: E402
from mkdocs.config.defaults import MkDocsConfig  # noqa: E402
from mkdocs.structure.files import File, Files  # noqa: E402

AT_ROOT = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md", "SECURITY.md": "security.md"}
"""Pages at the root of the repository, and their place on the site."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
    logging.getLogger("app").setLevel(logging.ERROR)
    for place, text in {**reference.pages(), **_pages_at_root()}.items():
        files.append(File.generated(config, place, content=text))
    return files


def _pages_at_root() -> dict[str, str]:
    return {
        place: for_the_site((ROOT / name).read_text(encoding="utf-8"))
        for name, place in AT_ROOT.items()
        if (ROOT / name).exists()
    }


def for_the_site(text: str) -> str:
    """Point links of a root page to pages of the site; links to other files become plain text."""

    def moved(link: re.Match[str]) -> str:
        label, target, anchor = link[1], link[2], link[3] or ""
        if target.startswith("docs/"):
            return f"[{label}]({target.removeprefix('docs/')}{anchor})"
        if target in AT_ROOT:
            return f"[{label}]({AT_ROOT[target]}{anchor})"
        return label

    return re.sub(r"\[([^\]]+)\]\((?!https?:|mailto:|#)([^)#]+)(#[^)]*)?\)", moved, text)
