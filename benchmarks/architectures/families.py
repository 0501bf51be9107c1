"""All families, in the order of the table."""

from __future__ import annotations

from architectures import generation, libraries, plain, senses, text

FAMILIES = (*text.FAMILIES, *generation.FAMILIES, *senses.FAMILIES, *libraries.FAMILIES, *plain.FAMILIES)
