"""docs/reliability.md: the tests that it names are there, and its figures are those of the results."""

import ast
import json
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "reliability.md").read_text()


def test_every_test_that_is_named_is_there():
    named = re.findall(r"`(tests/[^`:]+)(?:::(\w+))?`", TEXT)
    assert len(named) > 10
    for path, function in named:
        tree = ast.parse((ROOT / path).read_text())
        names = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        assert not function or function in names, f"{path}::{function}"


def test_the_figures_of_the_soak_are_those_of_its_result():
    result = json.loads((ROOT / "benchmarks" / "results" / "soak.json").read_text())
    answers = result["answers"]
    of_ours = {name: count for name, count in answers.items() if not name.startswith(("look", "load"))}
    compared = sum(count for name, count in of_ours.items() if name.endswith(" 200"))
    busy = sum(count for name, count in answers.items() if name.endswith(" 503"))
    bad = sum(count for name, count in answers.items() if name.startswith("bad"))
    assert result["changed_files"] == 0
    assert result["settings"]["minutes"] >= 20
    for line in (
        f"| requests | {result['requests']:,} in 20 minutes",
        f"| of these answered and compared | {compared:,} |",
        f"| wrong answers | {result['wrong answers']} |",
        f"| statuses that were not expected | {result['unexpected statuses']} (503 counts as expected",
        f" during a burst only: {busy}) |",
        f"| clients that gave up | {answers['gave up']:,} |",
        f"| reloads | {answers['load 200']},",
        f"| bad requests | {bad:,},",
        f"| resident memory, last quarter over second | {result['memory, last quarter over second']:.2f} |",
        f"| open files, first and last | {result['open files']['first']}, {result['open files']['last']} |",
        f"| tracebacks in the log | {result['tracebacks in the log']} |",
        f"| exit status after SIGTERM | {result['exit status']} |",
    ):
        assert line in TEXT, line
