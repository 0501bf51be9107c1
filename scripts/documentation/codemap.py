"""docs/code-map.md: each file and its one job, as the first lines of the files say it.

python scripts/documentation/codemap.py    writes it anew; a test holds it to the files
"""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "code-map.md"
FOLDERS = {
    "panther": "The library: layers, training, conversion, export. Needs torch; never imports `app`.",
    "app": "The server. Needs onnxruntime; never imports `panther`, torch or onnx.",
    "panther_client": "The Python client: httpx and numpy alone.",
    "benchmarks": "What is measured, and how: parity first, then both sides in one run.",
    "examples": "Scripts that run as they stand.",
    "scripts": "Environments, locks, and the documentation.",
    "deploy": "What is in the image or beside it.",
}
KINDS = (".py", ".js", ".lua", ".sh", "")
HEAD = """# The code map

Each file and its one job, taken from the first line of the file. Where to start reading: `panther/nn/functional.py`
(the formula), `panther/export/api.py` (a model becomes a file), `app/inference.py` (a request becomes an answer).
"""


def job(path: Path) -> str:
    """The first sentence of a file's docstring or head comment.

    Raises:
        ValueError: it has none.
    """
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        lines = (ast.get_docstring(ast.parse(text)) or "").split("\n\n")[0].splitlines()
    else:
        lines = []
        for line in text.splitlines():
            if line.startswith("#!"):
                continue
            comment = re.match(r"(?://|--|#)\s?(.*)", line)
            if comment is None or comment[1].startswith("usage:"):
                break
            lines.append(comment[1])
    sentence = re.split(r"(?<=[.!?])\s", " ".join(line.strip() for line in lines).strip(), maxsplit=1)[0]
    if not sentence:
        raise ValueError(f"{path}: the first line must say what the file is for")
    return sentence.replace("``", "`").replace("|", "\\|")


def files(folder: str) -> list[str]:
    """The source files of a folder that git knows, or that could be added to it; empty ones have no job."""
    asked = ["git", "ls-files", "--cached", "--others", "--exclude-standard", folder]
    listed = subprocess.run(asked, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split()
    return sorted(
        name
        for name in set(listed)
        if Path(name).suffix in KINDS
        and not Path(name).name.startswith(".")
        and (ROOT / name).is_file()
        and (ROOT / name).stat().st_size
    )


def page() -> str:
    """The text of docs/code-map.md."""
    parts = [HEAD]
    for folder, what in FOLDERS.items():
        parts.append(f"## `{folder}/`\n\n{what}\n")
        rows = [f"| `{name}` | {job(ROOT / name)} |" for name in files(folder)]
        parts.append("\n".join(["| file | job |", "|---|---|", *rows]) + "\n")
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
