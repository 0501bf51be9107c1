"""docs/reliability.md: the tests that it names are there, and its figures are those of the results."""

import ast
import json
import re
from pathlib import Path

ROOT = Path(__file__).parents[3]
TEXT = (ROOT / "docs" / "reliability.md").read_text()


def test_every_test_that_is_named_is_there():
    named = re.findall(r"`(tests/[^`:]+)(?:::(\w+))?`", TEXT)
    assert len(named) > 10
    for path, function in named:
        tree = ast.parse((ROOT / path).read_text())
        names = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        assert not function or function in names, f"{path}::{function}"


def test_the_runs_that_are_told_of_were_whole_and_of_a_clean_tree():
    soak, fuzz = (
        json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text()) for name in ("soak", "fuzz")
    )
    assert soak["settings"]["minutes"] >= 20
    assert fuzz["decoder_inputs"] >= 1_000_000
    assert fuzz["findings"] == soak["wrong answers"] == soak["unexpected statuses"] == 0
    assert fuzz["changed_files"] == soak["changed_files"] == 0
