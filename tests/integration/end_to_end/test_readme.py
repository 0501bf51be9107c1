"""The README's commands, run against a real server; what it shows is what they print."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```console\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)
SESSIONS = [
    (command.strip(), shown.strip())
    for block in BLOCKS
    for command, _, shown in (
        part.partition("\n") for part in re.split(r"^\$ ", block, flags=re.MULTILINE) if part.strip()
    )
]
ASKED = [(command, shown) for command, shown in SESSIONS if command.startswith("curl")]


def close(shown, printed):
    """Numbers to one part in a thousand; all else exactly."""
    if isinstance(shown, dict):
        assert isinstance(printed, dict)
        assert shown.keys() == printed.keys()
        for key, value in shown.items():
            close(value, printed[key])
    elif isinstance(shown, list):
        assert len(shown) == len(printed)
        for left, right in zip(shown, printed, strict=True):
            close(left, right)
    elif isinstance(shown, float):
        assert printed == pytest.approx(shown, rel=1e-3, abs=1e-4)
    else:
        assert printed == shown


def test_the_readme_has_its_two_commands_and_asks_the_server():
    assert {"make run", "make test"} <= {command for command, _ in SESSIONS}
    assert len(ASKED) >= 2


@pytest.mark.parametrize(("command", "shown"), ASKED, ids=lambda text: text[:60])
def test_a_curl_of_the_readme_prints_what_it_shows(command, shown, shipped):
    here = command.replace("localhost:8000", shipped.removeprefix("http://"))
    assert here != command
    ended = subprocess.run(here, shell=True, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 0, ended.stderr
    close(json.loads(shown), json.loads(ended.stdout))


@pytest.mark.parametrize("link", re.findall(r"\]\(([^)#:]+)\)", README))
def test_a_link_of_the_readme_leads_somewhere(link):
    assert (ROOT / link).exists(), link
