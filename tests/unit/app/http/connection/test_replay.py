"""Bytes that are handled again, in the buffers of the connection."""

from types import SimpleNamespace

import pytest

from app.http.connection.replay import replay


class Connection:
    def __init__(self):
        self.buffer = bytearray(8)
        self.pieces = []
        self.long = SimpleNamespace(held=False)
        self.transport = SimpleNamespace(get_protocol=lambda: self, is_closing=lambda: False)

    def get_buffer(self, _):
        return memoryview(self.buffer)

    def buffer_updated(self, count):
        assert self.long.held
        self.pieces.append(bytes(self.buffer[:count]))


@pytest.mark.parametrize("count", [0, 1, 8, 9, 20])
def test_bytes_arrive_in_order_and_in_pieces_that_fit(count):
    connection = Connection()
    replay(connection, connection.transport, connection.long, bytes(range(count)))
    assert b"".join(connection.pieces) == bytes(range(count))
    assert not connection.long.held


@pytest.mark.parametrize("ended", [{"get_protocol": lambda: None}, {"is_closing": lambda: True}])
def test_bytes_after_the_end_are_discarded(ended):
    connection = Connection()
    connection.transport.__dict__.update(ended)
    replay(connection, connection.transport, connection.long, b"abc")
    assert connection.pieces == []
