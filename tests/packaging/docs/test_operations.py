"""docs/operations.md: each promise names what holds it, and that is there."""

import ast
import re
import tomllib
from pathlib import Path

import pytest

from app.repository.model_settings import ModelSettings

ROOT = Path(__file__).parents[3]
TEXT = (ROOT / "docs" / "operations.md").read_text()
PROMISES = re.findall(r"^\| (.+) \| (.+) \|$", TEXT.partition("| guarantee | test |\n|---|---|\n")[2], re.MULTILINE)


def functions(path):
    return {node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize(("promise", "held_by"), PROMISES, ids=[promise[:50] for promise, _ in PROMISES])
def test_what_holds_a_promise_is_there(promise, held_by):
    names = re.findall(r"`((?:tests|benchmarks)/[^`]+)`", held_by)
    assert names
    for name in names:
        path, _, function = name.partition("::")
        assert (ROOT / path).is_file(), name
        assert path.startswith("benchmarks/") or function in functions(ROOT / path), name


def test_no_test_of_real_processes_is_without_a_promise():
    assert len(PROMISES) > 25
    for path in sorted((ROOT / "tests" / "integration" / "processes").glob("test_*.py")):
        named = {
            name
            for _, held_by in PROMISES
            for name in re.findall(rf"tests/integration/processes/{path.name}::(\w+)", held_by)
        }
        there = {name for name in functions(path) if name.startswith("test_")}
        # Of those clients there are many; what they are for is one promise.
        assert named == there if path.name != "test_hostile_clients.py" else named, path.name


def test_the_example_of_a_model_s_settings_is_one():
    (example,) = re.findall(r"```toml\n(.+?)```", TEXT, re.DOTALL)
    document = tomllib.loads(example)
    assert set(document) == set(ModelSettings.model_fields)
    ModelSettings.model_validate(document)
