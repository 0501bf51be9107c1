"""A server in its own process, which hostile models must not bring down."""

from collections.abc import Iterator

import pytest
from helpers.hostile import Server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    found = Server(tmp_path_factory.mktemp("hostile"), "--trial-load-s", "5")
    yield found
    found.end()
