"""Without the packages of the extra a port for gRPC is refused by name, and without a port nothing is asked for."""

import sys

import pytest

from app.config.settings import Settings
from app.grpc.extra import MissingExtraError, require_extra


@pytest.mark.parametrize("package", ["grpc", "google.protobuf", "grpc_health", "grpc_reflection"])
def test_a_missing_package_is_named(monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(
        MissingExtraError, match=rf"grpc_port=8001 requires the extra 'grpc'.*'{package}' is not installed"
    ):
        require_extra(Settings(grpc_port=8001))
    require_extra(Settings())


def test_the_transport_that_is_asked_for_is_needed(monkeypatch):
    monkeypatch.setitem(sys.modules, "ngh2", None)
    with pytest.raises(MissingExtraError, match=r"requires the extra 'grpc'.*'ngh2' is not installed"):
        require_extra(Settings(grpc_port=8001, grpc_transport="nghttp2"))
    require_extra(Settings(grpc_port=8001))


def test_with_all_of_them_nothing_is_said():
    require_extra(Settings(grpc_port=8001))
