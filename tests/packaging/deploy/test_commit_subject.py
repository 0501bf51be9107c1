"""scripts/commit_subject.py: what a message may be, and the words for what it may not."""

import re
import subprocess
import sys

import pytest
import yaml


def check(root, tmp_path, message):
    file = tmp_path / "message"
    file.write_text(message)
    command = [sys.executable, root / "scripts/commit_subject.py", file]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return ended.returncode, ended.stderr


@pytest.mark.parametrize(
    "message",
    [
        "Cap timeout settings at one day\n",
        "Cap timeout settings at one day\n\nA year overflows the timers.\n# a comment of git's\n",
        "\n# On branch main\nEmbed the card in the file\n",
        f"Write {'x' * 66}\n",
        f"Merge branch 'reports' of {'x' * 80}\n",
        "fixup! Cap timeout settings at one day\n",
        f"Cap timeouts\n# ------------------------ >8 ------------------------\n{'diff ' * 30}\nmore\n",
        "# nothing but comments, which git refuses itself\n",
    ],
)
def test_messages_that_pass(root, tmp_path, message):
    assert check(root, tmp_path, message) == (0, "")


@pytest.mark.parametrize(
    ("message", "problem"),
    [
        (f"Write {'x' * 67}\n", "the subject has 73 characters; at most 72: move the reason to the body"),
        ("cap timeouts\n", "the subject starts with 'c': start with a capital letter"),
        ("Cap timeouts.\n", "the subject ends with a full stop: leave it out"),
        ("Capped timeouts\n", "the subject starts with 'Capped': use the imperative"),
        ("Fixing timeouts\n", "the subject starts with 'Fixing': use the imperative"),
        ("Adds a setting\n", "the subject starts with 'Adds': use the imperative"),
        ("Cap timeouts\nA year overflows.\n", "the second line is 'A year overflows.': leave it empty"),
    ],
)
def test_messages_that_do_not(root, tmp_path, message, problem):
    status, error = check(root, tmp_path, message)
    assert status == 1
    assert error.startswith(f"error: {problem}")
    assert len(error.splitlines()) == 1


def test_the_hook_runs_it_and_make_hooks_installs_it(root):
    config = yaml.safe_load((root / ".pre-commit-config.yaml").read_text())
    (hook,) = [hook for hook in config["repos"][0]["hooks"] if "commit-msg" in hook.get("stages", ())]
    assert (hook["entry"], config["default_stages"]) == ("scripts/commit_subject.py", ["pre-commit"])
    assert re.search(r"pre_commit install .*--hook-type commit-msg", (root / "Makefile").read_text())
