#!/usr/bin/env python3
"""Check the subject of a commit: an imperative of at most 72 characters, with the reason in the body.

usage: scripts/commit_subject.py FILE        FILE holds the message; 'make hooks' installs the hook that calls it
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

LIMIT = 72
# Forms of verbs that are not imperative; some words only look like them.
NOT_IMPERATIVE = re.compile(
    r"(?:\w+(?:ed|ing)|adds|changes|fixes|makes|moves|removes|renames|replaces|updates|uses)\Z", re.I
)
NOT_VERB_FORMS = {"bring", "embed", "exceed", "feed", "need", "proceed", "seed", "speed", "string", "succeed"}
FROM_GIT = ("Merge ", "Revert ", "fixup! ", "squash! ", "amend! ")


def problems(message: str) -> list[str]:
    """Problems of a message; empty if there are none."""
    # Git cuts the message at the scissors line, and drops comment lines.
    text = re.split(r"^# -+ >8 -+$", message, maxsplit=1, flags=re.MULTILINE)[0]
    lines = [line.rstrip() for line in text.splitlines() if not line.startswith("#")]
    while lines and not lines[0]:
        del lines[0]
    if not lines:
        return []  # git refuses an empty message
    subject = lines[0]
    if subject.startswith(FROM_GIT):
        return []
    found = []
    if len(subject) > LIMIT:
        found.append(f"the subject has {len(subject)} characters; at most {LIMIT}: move the reason to the body")
    if not subject[0].isupper():
        found.append(f"the subject starts with {subject[0]!r}: start with a capital letter")
    if subject.endswith("."):
        found.append("the subject ends with a full stop: leave it out")
    word = subject.split()[0]
    if NOT_IMPERATIVE.match(word) and word.lower() not in NOT_VERB_FORMS:
        found.append(f"the subject starts with {word!r}: use the imperative, as in 'Cap timeout settings at one day'")
    if len(lines) > 1 and lines[1]:
        found.append(f"the second line is {lines[1]!r}: leave it empty, and start the body after it")
    return found


if __name__ == "__main__":
    wrong = problems(Path(sys.argv[1]).read_text(encoding="utf-8"))
    for line in wrong:
        sys.stderr.write(f"error: {line}\n")
    sys.exit(bool(wrong))
