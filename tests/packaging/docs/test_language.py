"""Plain English: no banned phrase in what people read, and docstrings whose first line makes sense on its own.

Each phrase stands here because it was a paraphrase of a term of the field; the comment beside it has the term.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
BANNED = {
    "in hand": "in flight, reserved",
    "anew": "again",
    "of its own": "separate, its",
    "of their own": "separate, their",
    "of our own": "our",
    "can't be had": "is not available",
    "is had": "is available",
    "mended": "fixed",
    "tells of": "reports, describes",
    "told of": "reported",
    "stands for": "represents, replaces",
    "stands in for": "replaces",
    "brain float": "bfloat16",
    "nobody": "no client, no user",
    "somebody": "a client, a user",
    "who may ask": "authentication",
    "who asks": "client",
    "what waits": "the queue",
    "going back": "rollback, rolling back",
    "ready and alive": "health checks",
    "none of inference": "not inference",
    "is well again": "has recovered",
    "in play": "eligible",
    "passed over": "skipped, ignored",
    "looked at": "read, checked, examined",
    "puts out": "returns, its output",
    "at hand": "current",
    "shared out": "allocated, divided",
    "by custom": "by convention",
    "for ever": "forever",
    "there and back": "round trip",
    "may be had": "is available",
    "had better": "should",
    "well another time": "may succeed later",
    "those there are": "the known ones",
    "whatever it is": "any",
    "is not followed": "is not supported",
    "are not followed": "are not supported",
    "so that there is none": "so there is none",
    "a person says": "the operator sets",
    "by its own": "by its",
}
# Also banned from the messages, comments and docstrings of the server and its client.
STRICT = {
    "of which": "two sentences, or a participle",
    "that which": "the noun",
    "for want of": "without, because there is no",
    "by itself": "separately, alone, automatically",
    "is told": "is reported, is notified",
    "are told": "are reported, are notified",
    "it is none": "it is not one, it is invalid",
    "one is none": "one is invalid",
    "is none of": "is not one of",
    "whoever": "a client, a user",
    "one a line": "one per line",
    "the likeliest": "the most likely",
    "none where": "None if",
    "where there is none": "without one",
    "what is": "the noun",
    "what was": "the noun",
    "what has": "the noun",
}
PROSE = re.compile(rf"\b({'|'.join(BANNED)})\b(?! (class|largest|size)\b)", re.IGNORECASE)
DIALECT = re.compile(rf"\b({'|'.join(STRICT)})\b", re.IGNORECASE)
RIDDLE = re.compile(r"^(who|whoever|of|as|the same|see that|see above|have|take note)\b|\bwhat\b", re.IGNORECASE)
GENERATED = re.compile(r"<!-- report: \w+ -->.*?<!-- end of report -->", re.DOTALL)  # quotes messages of results
READ = [
    *ROOT.glob("*.md"),
    *(path for path in (ROOT / "docs").glob("*.md") if path.name != "code-map.md"),
    *(ROOT / ".github").rglob("*.*"),
    *(ROOT / "deploy").rglob("*.y*ml"),
    *ROOT.glob("docker-compose*.yml"),
    *(path for path in (ROOT / "scripts").rglob("*") if path.is_file() and path.suffix != ".pyc"),
    *(ROOT / "examples").glob("*.py"),
    *(ROOT / "deploy" / "nginx").iterdir(),
    ROOT / ".ci" / "run",
    ROOT / "Makefile",
    ROOT / "mkdocs.yml",
    ROOT / "pyproject.toml",
]
SOURCES = [path for folder in ("app", "panther", "panther_client") for path in (ROOT / folder).rglob("*.py")]
PAGE = [path for path in (ROOT / "app" / "http" / "dashboard").iterdir() if path.suffix in (".js", ".html", ".css")]


def found(path):
    text = GENERATED.sub(lambda block: "\n" * block[0].count("\n"), path.read_text(encoding="utf-8"))
    lines = text.splitlines()
    return [
        f"{path.relative_to(ROOT)}:{number}: {match[0]!r}, better: {BANNED[match[0].lower()]}"
        for number, line in enumerate(lines, 1)
        for match in PROSE.finditer(line)
    ]


@pytest.mark.parametrize("group", ["documents", "sources", "dashboard"])
def test_no_phrase_is_banned(group):
    paths = {"documents": READ, "sources": SOURCES, "dashboard": PAGE}[group]
    assert len(paths) > 5
    problems = [problem for path in paths for problem in found(path)]
    assert not problems, "\n".join(problems)


def texts(path):
    """Line and text of each string and block of comments, as a reader sees them: joined over lines."""
    source = path.read_text(encoding="utf-8")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.JoinedStr):
            parts = [part.value if isinstance(part, ast.Constant) else "…" for part in node.values]
            yield node.lineno, "".join(map(str, parts))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value
    blocks, first, last = {}, 0, -1
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            first, last = (first if token.start[0] == last + 1 else token.start[0]), token.start[0]
            blocks.setdefault(first, []).append(token.string.lstrip("# "))
    yield from ((line, " ".join(parts)) for line, parts in blocks.items())


@pytest.mark.parametrize("folder", ["app", "panther", "panther_client"])
def test_messages_and_comments_are_plain(folder):
    patterns = [(PROSE, BANNED)] if folder == "panther" else [(PROSE, BANNED), (DIALECT, STRICT)]
    count, problems = 0, {}
    for path in (ROOT / folder).rglob("*.py"):
        for line, text in texts(path):
            count += 1
            for pattern, better in patterns:
                for match in pattern.finditer(" ".join(text.split())):
                    where = f"{path.relative_to(ROOT)}:{line}"
                    problems[where] = f"{where}: {match[0]!r}, better: {better[match[0].lower()]}"
    assert count > 500
    assert not problems, "\n".join(problems.values())


def test_texts_are_joined_over_lines(tmp_path):
    path = tmp_path / "module.py"
    path.write_text(
        '# This is not had by\n# itself.\nraise ValueError(\n    f"model {1} has a part of "\n    "which is wrong"\n)\n'
    )
    found_texts = [text for _, text in texts(path)]
    assert "model … has a part of which is wrong" in found_texts
    assert found_texts[-1] == "This is not had by itself."
    assert {match for text in found_texts for match in DIALECT.findall(text)} == {"of which", "by itself"}


def docstrings(node, place, *, public=True):
    """Place and docstring of each public module, class and function within."""
    text = ast.get_docstring(node) if public else None
    if text:
        yield place, text
    for child in node.body:
        if isinstance(child, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            public_too = public and (not child.name.startswith("_") or child.name == "__call__")
            if isinstance(child, ast.ClassDef):
                yield from docstrings(child, f"{place}:{child.name}", public=public_too)
            elif public_too and ast.get_docstring(child):
                yield f"{place}:{child.name}", ast.get_docstring(child)


def test_the_first_line_of_a_docstring_is_no_riddle():
    count, riddles = 0, []
    for path in SOURCES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for place, text in docstrings(tree, path.relative_to(ROOT).as_posix()):
            count += 1
            first = text.splitlines()[0]
            if RIDDLE.search(first):
                riddles.append(f"{place}: {first}")
    assert count > 1500
    assert not riddles, "\n".join(riddles)


@pytest.mark.parametrize(
    ("line", "riddle"),
    [
        ("What a client may take of the server.", True),
        ("Note what became of a command.", True),
        ("Whoever asks is answered.", True),
        ("Of a row of the weight.", True),
        ("The same for a node.", True),
        ("Limits of each connection.", False),
        ("An output whose last axis has labels.", False),
    ],
)
def test_what_counts_as_a_riddle(line, riddle):
    assert bool(RIDDLE.search(line)) == riddle
