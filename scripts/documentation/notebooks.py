"""Write examples/notebooks/ from the code of the tutorials, which the tests run.

python scripts/documentation/notebooks.py            writes the notebooks
python scripts/documentation/notebooks.py --check    writes nothing; fails if one is out of date
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "examples" / "notebooks"
PAGES = ("int8-or-sketch", "tutorial-convnet", "tutorial-huggingface")
"""Pages of docs/ with Python blocks that need no server."""
SPLIT = re.compile(r"^```python\n(.*?)^```\n", re.MULTILINE | re.DOTALL)
MARKS = re.compile(r"<!-- (?:report: \w+|end of report) -->\n")


def notebook(page: str) -> str:
    """One page as a notebook: its Python blocks as code, the rest as text."""
    text = MARKS.sub("", (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8"))
    cells: list[dict[str, Any]] = []
    for number, part in enumerate(SPLIT.split(text)):
        source = (part if number % 2 else _with_links(part)).strip()
        if not source:
            continue
        cell: dict[str, Any] = {"cell_type": "code" if number % 2 else "markdown", "id": f"cell-{number}"}
        if number % 2:
            cell |= {"execution_count": None, "outputs": []}
        cells.append(cell | {"metadata": {}, "source": source.splitlines(keepends=True)})
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    document = {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def _with_links(text: str) -> str:
    """Rewrite links to other pages, relative to the notebook's folder."""
    return re.sub(r"\]\((?!https?:|#)([^)]+)\)", r"](../../docs/\1)", text)


def stale(*, write: bool) -> list[str]:
    """Paths of the notebooks that differ from their pages; ``write`` updates them."""
    changed = []
    for page in PAGES:
        path, text = FOLDER / f"{page.removeprefix('tutorial-')}.ipynb", notebook(page)
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            changed.append(path.relative_to(ROOT).as_posix())
            if write:
                path.parent.mkdir(exist_ok=True)
                path.write_text(text, encoding="utf-8")
    return changed


def main() -> int:
    """Write or check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    changed = stale(write=not check)
    for name in changed:
        print(f"{'out of date' if check else 'wrote'}: {name}")
    return int(check and bool(changed))


if __name__ == "__main__":
    sys.exit(main())
