"""The notebooks are the tutorials, whose code tests/integration/end_to_end/test_documents.py runs."""

from __future__ import annotations

import ast
import json
import re

import notebooks
import pytest

NOTEBOOKS = sorted(notebooks.FOLDER.glob("*.ipynb"))


def test_they_are_up_to_date():
    assert notebooks.stale(write=False) == [], "run: python scripts/documentation/notebooks.py"
    assert len(NOTEBOOKS) == len(notebooks.PAGES)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_has_the_code_of_its_page_and_links_that_lead_somewhere(path, root):
    document = json.loads(path.read_text(encoding="utf-8"))
    assert (document["nbformat"], document["nbformat_minor"]) == (4, 5)
    code = ["".join(cell["source"]) for cell in document["cells"] if cell["cell_type"] == "code"]
    (page,) = [page for page in notebooks.PAGES if page.endswith(path.stem)]
    text = (root / "docs" / f"{page}.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert [ast.dump(ast.parse(part)) for part in code] == [ast.dump(ast.parse(part)) for part in blocks]
    assert len({cell["id"] for cell in document["cells"]}) == len(document["cells"])
    prose = "".join("".join(cell["source"]) for cell in document["cells"] if cell["cell_type"] == "markdown")
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", prose):
        assert (path.parent / target).exists(), target


def test_these_pages_are_run():
    import sys

    sys.path.append(str(notebooks.ROOT / "tests" / "integration" / "end_to_end"))
    try:
        from test_documents import ELSEWHERE, PAGES
    finally:
        sys.path.pop()
    for page in notebooks.PAGES:
        assert f"docs/{page}.md" in PAGES
        assert f"docs/{page}.md" not in ELSEWHERE
