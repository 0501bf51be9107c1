"""A gRPC service on nghttp2 that answers a constant: `python nghttp2_echo.py PORT`.

nghttp2 is a library of HTTP/2 in C, of which this is the least binding by ctypes: frames, flow control and HPACK are
the library's; sockets and the event loop are asyncio's. It shows what gRPC costs where HTTP/2 runs inside the event
loop, and is no server: nothing is checked, and no error is handled.
"""

import asyncio
import ctypes
import ctypes.util
import sys
from ctypes import CFUNCTYPE, POINTER, byref, c_int, c_int32, c_size_t, c_ssize_t, c_uint8, c_uint32, c_void_p

import uvloop

ANSWER = b"\0\0\0\0\x49" + bytes(73)  # a message of as many bytes as an answer with ten logits has
END_STREAM, HEADERS, DATA = 1, 1, 0
EOF, NO_END_STREAM = 1, 2  # return codes of a data source


class Header(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char_p), ("value", ctypes.c_char_p),
        ("name_length", c_size_t), ("value_length", c_size_t), ("flags", c_uint8),
    )  # fmt: skip


class Frame(ctypes.Structure):
    _fields_ = (
        ("length", c_size_t), ("stream", c_int32), ("type", c_uint8), ("flags", c_uint8), ("reserved", c_uint8),
    )  # fmt: skip


class Source(ctypes.Structure):
    _fields_ = (("own", c_void_p), ("read", c_void_p))


OnFrame = CFUNCTYPE(c_int, c_void_p, POINTER(Frame), c_void_p)
OnHeader = CFUNCTYPE(c_int, c_void_p, c_void_p, c_void_p, c_size_t, c_void_p, c_size_t, c_uint8, c_void_p)
OnChunk = CFUNCTYPE(c_int, c_void_p, c_uint8, c_int32, c_void_p, c_size_t, c_void_p)
OnClose = CFUNCTYPE(c_int, c_void_p, c_int32, c_uint32, c_void_p)
Read = CFUNCTYPE(c_ssize_t, c_void_p, c_int32, c_void_p, c_size_t, POINTER(c_uint32), c_void_p, c_void_p)

LIBRARY = ctypes.CDLL(ctypes.util.find_library("nghttp2"))
_TYPES = {
    "session_server_new": (c_int, (c_void_p, c_void_p, c_void_p)),
    "session_del": (None, (c_void_p,)),
    "session_mem_recv": (c_ssize_t, (c_void_p, ctypes.c_char_p, c_size_t)),
    "session_mem_send": (c_ssize_t, (c_void_p, c_void_p)),
    "submit_settings": (c_int, (c_void_p, c_uint8, c_void_p, c_size_t)),
    "submit_response": (c_int, (c_void_p, c_int32, c_void_p, c_size_t, c_void_p)),
    "submit_trailer": (c_int, (c_void_p, c_int32, c_void_p, c_size_t)),
    "session_callbacks_new": (c_int, (c_void_p,)),
}


def function(name):
    found = getattr(LIBRARY, f"nghttp2_{name}")
    found.restype, found.argtypes = _TYPES[name]
    return found


receive, send = function("session_mem_recv"), function("session_mem_send")
submit_response, submit_trailer = function("submit_response"), function("submit_trailer")


def headers(*pairs):
    found = (Header * len(pairs))()
    for index, (name, value) in enumerate(pairs):
        found[index] = Header(name, value, len(name), len(value), 0)
    return found


RESPONSE = headers((b":status", b"200"), (b"content-type", b"application/grpc"))
TRAILER = headers((b"grpc-status", b"0"), (b"x-request-id", b"0123456789abcdef"))
connection = None  # whose bytes the library is reading or writing


@OnFrame
def on_begin(_, frame, __):
    connection.streams[frame[0].stream] = []
    return 0


@OnHeader
def on_header(_, __, name, name_length, value, value_length, ___, ____):
    connection.headers.append((ctypes.string_at(name, name_length), ctypes.string_at(value, value_length)))
    return 0


@OnChunk
def on_chunk(_, __, stream, data, length, ___):
    connection.streams[stream].append(ctypes.string_at(data, length))
    return 0


@OnFrame
def on_frame(_, frame, __):
    found = frame[0]
    if found.flags & END_STREAM and found.type in (HEADERS, DATA):
        connection.ended.append(found.stream)
    return 0


@OnClose
def on_close(_, stream, __, ___):
    connection.streams.pop(stream, None)
    return 0


@Read
def read(session, stream, buffer, _, flags, __, ___):
    ctypes.memmove(buffer, ANSWER, len(ANSWER))
    flags[0] = EOF | NO_END_STREAM
    submit_trailer(session, stream, TRAILER, len(TRAILER))
    return len(ANSWER)


CALLBACKS = c_void_p()
function("session_callbacks_new")(byref(CALLBACKS))
for _event, _callback in (
    ("on_begin_headers", on_begin),
    ("on_header", on_header),
    ("on_data_chunk_recv", on_chunk),
    ("on_frame_recv", on_frame),
    ("on_stream_close", on_close),
):
    getattr(LIBRARY, f"nghttp2_session_callbacks_set_{_event}_callback")(CALLBACKS, _callback)
SOURCE = Source(None, ctypes.cast(read, c_void_p))


class Connection(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport, self.streams, self.headers, self.ended = transport, {}, [], []
        self.session, self.pending = c_void_p(), c_void_p()
        function("session_server_new")(byref(self.session), CALLBACKS, None)
        function("submit_settings")(self.session, 0, None, 0)
        self.flush()

    def connection_lost(self, _):
        function("session_del")(self.session)

    def data_received(self, data):
        global connection  # noqa: PLW0603
        connection = self
        if receive(self.session, data, len(data)) < 0:
            self.transport.close()
            return
        for stream in self.ended:
            b"".join(self.streams[stream])
            submit_response(self.session, stream, RESPONSE, len(RESPONSE), byref(SOURCE))
        self.ended.clear()
        self.headers.clear()
        self.flush()

    def flush(self):
        parts = []
        while (length := send(self.session, byref(self.pending))) > 0:
            parts.append(ctypes.string_at(self.pending, length))
        if parts:
            self.transport.write(b"".join(parts))


async def serve(port):
    server = await asyncio.get_running_loop().create_server(Connection, "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1])))
