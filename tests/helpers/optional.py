"""Packages that few tests need: imported on first use, because every process collects every test."""

from typing import Any

import pytest


class Optional:
    """A package by name; the first attribute imports it, or skips the test where it is not installed."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(pytest.importorskip(self._name), attribute)
