"""One request on a connection: its body takes the memory that it is counted with, however it comes."""

import sys
import tracemalloc

import pytest

from app.application import create_app
from app.config.settings import Settings
from app.errors import OverloadedError
from app.http.connection.request import WireRequest


@pytest.fixture
def service(tmp_path):
    return create_app(Settings(model_dir=tmp_path, max_queue_bytes=1 << 20)).service


def wire_request(service):
    return WireRequest(service, service.target("/predict"), {}, b"", keep_alive=True)


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_pieces_are_joined_as_they_come_and_counted_with_what_they_take(service, size):
    request = wire_request(service)
    whole = bytes(range(250)) * 800
    tracemalloc.start()
    try:
        for at in range(0, len(whole), size):
            assert request.add(whole[at : at + size], 1 << 20)
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert request.body == whole
    assert service.admission.reserved_bytes == request.reservation.nbytes
    assert len(whole) <= request.reservation.nbytes <= 1.2 * len(whole)
    assert taken <= request.reservation.nbytes + 4096


def test_a_body_of_one_piece_is_not_copied(service):
    request = wire_request(service)
    piece = b"x" * 100
    request.add(piece, 1000)
    assert request.body is piece
    assert service.admission.reserved_bytes == 100


def test_a_body_over_the_limit_or_the_budget_is_refused(service):
    request = wire_request(service)
    assert request.add(b"x" * 60, 100)
    assert not request.add(b"x" * 41, 100)
    with pytest.raises(OverloadedError, match=r"would exceed max_queue_bytes \(1048576\)"):
        request.add(bytes(1 << 20), sys.maxsize)
    request.drop_body()
    assert (len(request.body), service.admission.reserved_bytes) == (0, 0)


def test_a_request_that_is_dropped_gives_its_bytes_back(service):
    request = wire_request(service)
    request.add(b"x" * 60, 100)
    del request
    assert service.admission.reserved_bytes == 0
    request = wire_request(service)
    request.add(b"x" * 60, 100)
    request.abandon()
    assert (request.response_complete, service.admission.reserved_bytes) == (True, 0)
