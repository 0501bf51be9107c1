"""docs/code-map.md: every source file with its purpose, grouped by folder, from the first lines of the files.

python scripts/documentation/codemap.py    writes the page; a test compares it with the files
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
    "panther_client": "The Python client: requires only numpy, and httpx or grpcio.",
    "benchmarks": "Benchmarks: parity first, then both sides timed in one run.",
    "examples": "Scripts that run as they are.",
    "scripts": "Environments, locks, and the documentation.",
    "deploy": "Files of the image, and configurations of Kubernetes, Prometheus, Grafana and nginx.",
}
KINDS = (".py", ".js", ".lua", ".sh", "")
PACKAGE = "__init__.py"
HEAD = """# The code map

Every file with its purpose, folder by folder, taken from the first line of the file. The architecture is in
[Contributing](contributing.md). Where to start reading: `panther/nn/functional.py` (the formula),
`panther/export/api.py` (from a model to a file), `panther/compression/api.py` (from a model to a smaller one under a
budget), `app/service/inference.py` (from a request to its result).
"""


def job(path: Path) -> str:
    """The first sentence of a file's docstring or first comment.

    Raises:
        ValueError: The file has none.
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
    """Source files of a folder that git tracks or could track; empty ones are excluded."""
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


def by_folder(names: list[str]) -> dict[str, list[str]]:
    """File names by folder, a folder before its subfolders."""
    found: dict[str, list[str]] = {}
    for name in names:
        folder, _, file = name.rpartition("/")
        found.setdefault(folder, []).append(file)
    return dict(sorted(found.items()))


def section(folder: str, names: list[str]) -> str:
    """Heading, purpose and table of one folder; the purpose of a package is the first line of its ``__init__.py``."""
    parts = [f"### `{folder}/`"] if "/" in folder else [f"## `{folder}/`", FOLDERS[folder]]
    if "/" in folder and PACKAGE in names:
        parts.append(job(ROOT / folder / PACKAGE))
    rows = [f"| `{name}` | {job(ROOT / folder / name)} |" for name in names if name != PACKAGE]
    if rows:
        parts.append("\n".join(["| file | purpose |", "|---|---|", *rows]))
    return "\n\n".join(parts) + "\n"


def page() -> str:
    """The text of docs/code-map.md."""
    folders = [item for folder in FOLDERS for item in by_folder(files(folder)).items()]
    return "\n".join([HEAD, *(section(folder, names) for folder, names in folders)])


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
