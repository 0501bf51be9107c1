"""Makes the parser of docstrings understand ours: doctests outside of sections, several names that share a line."""

from __future__ import annotations

import re
from typing import Any

import griffe

DOCTEST = re.compile(r"^>>> .*(?:\n(?!\s*$).*)*", re.MULTILINE)
SEVERAL = re.compile(r"^( +)(\w+(?:, \w+)+): ", re.MULTILINE)
NO_BREAK = "\N{NO-BREAK SPACE}"


class Docstrings(griffe.Extension):
    """Puts a fence around each doctest, and keeps ``a, b: what both are`` together, which would be read as a type."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Change the docstring of one object."""
        if obj.docstring is None:
            return
        text = SEVERAL.sub(lambda found: f"{found[1]}{found[2].replace(' ', NO_BREAK)}: ", obj.docstring.value)
        if ">>> " in text and "```" not in text:
            text = DOCTEST.sub(lambda found: f"```pycon\n{found[0]}\n```", text)
        obj.docstring.value = text
