"""Extends the docstring parser: doctests outside of sections, and several names on one line."""

from __future__ import annotations

import re
from typing import Any

import griffe

DOCTEST = re.compile(r"^>>> .*(?:\n(?!\s*$).*)*", re.MULTILINE)
SEVERAL = re.compile(r"^( +)(\w+(?:, \w+)+): ", re.MULTILINE)
NO_BREAK = "\N{NO-BREAK SPACE}"


class Docstrings(griffe.Extension):
    """Fences each doctest, and keeps ``a, b: text`` together, which the parser would read as a type."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Change the docstring of one object."""
        if obj.docstring is None:
            return
        text = SEVERAL.sub(lambda found: f"{found[1]}{found[2].replace(' ', NO_BREAK)}: ", obj.docstring.value)
        if ">>> " in text and "```" not in text:
            text = DOCTEST.sub(lambda found: f"```pycon\n{found[0]}\n```", text)
        obj.docstring.value = text
