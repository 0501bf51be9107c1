"""Updates the generated parts of the documents: tables and pictures of results, and the code map.

    python benchmarks/report.py            writes what changed, and says what
    python benchmarks/report.py --check    writes nothing; fails where a document does not say what the results say

A table stands between ``<!-- report: NAME -->`` and ``<!-- end of report -->``; NAME is a function in
reporting/tables.py.

See docs/decisions/0065-results-in-documents.md.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from pathlib import Path

sys.path[:0] = [
    str(Path(__file__).resolve().parent),
    str(Path(__file__).resolve().parents[1] / "scripts" / "documentation"),
]

import codemap  # noqa: E402
from reporting.results import ROOT  # noqa: E402
from reporting.tables import BLOCKS  # noqa: E402

MARKED = re.compile(r"(<!-- report: (\w+) -->\n).*?(<!-- end of report -->)", re.DOTALL)
PICTURES = ROOT / "docs" / "pictures"


def filled(text: str) -> str:
    """A document with its marked blocks made anew.

    Raises:
        ValueError: a mark names no block.
    """

    def fill(found: re.Match[str]) -> str:
        if found[2] not in BLOCKS:
            raise ValueError(f"there is no block {found[2]!r}; there are: {', '.join(BLOCKS)}")
        return f"{found[1]}{BLOCKS[found[2]]()}\n{found[3]}"

    return MARKED.sub(fill, text)


def documents() -> list[Path]:
    """The documents that have marks."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    return [page for page in pages if MARKED.search(page.read_text(encoding="utf-8"))]


def stale(*, write: bool) -> list[str]:
    """What does not say what the results say, as paths; made anew where write is True."""
    changed = []
    made = [(page, filled(page.read_text(encoding="utf-8"))) for page in documents()]
    for page, new in [*made, (codemap.PAGE, codemap.page())]:
        if not page.exists() or page.read_text(encoding="utf-8") != new:
            changed.append(page)
            if write:
                page.write_text(new, encoding="utf-8")
    from reporting.plots import PICTURES as drawn
    from reporting.plots import draw

    with tempfile.TemporaryDirectory() as folder:
        for name in drawn:
            new_bytes = draw(name, Path(folder)).read_bytes()
            path = PICTURES / f"{name}.svg"
            if not path.exists() or path.read_bytes() != new_bytes:
                changed.append(path)
                if write:
                    path.parent.mkdir(exist_ok=True)
                    path.write_bytes(new_bytes)
    return [path.relative_to(ROOT).as_posix() for path in changed]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    changed = stale(write=not arguments.check)
    for path in changed:
        print(f"{'stale' if arguments.check else 'wrote'}: {path}")
    return 1 if arguments.check and changed else 0


if __name__ == "__main__":
    sys.exit(main())
