"""Profile of the hot path: each stage of a request timed alone, and a profile of the whole, in one process.

The connections are the server's own, over HTTP and over gRPC, fed from memory: no socket, no client, so what the kernel
takes is not in these figures. Best of many runs, which a busy machine disturbs least. With --output also the processor
time of a whole server, driven over sockets from another core, beside bare uvicorn's, which returns a constant.

    python benchmarks/profile_serving.py              stages and whole requests
    python benchmarks/profile_serving.py --output benchmarks/results/profile.json    the same, and over sockets
    python benchmarks/profile_serving.py --functions  the functions that take most, by cProfile
"""

import argparse
import asyncio
import cProfile
import json
import os
import pstats
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

import numpy as np  # noqa: E402
import uvloop  # noqa: E402
from bench_grpc import METHOD, Load, drive_grpc, message  # noqa: E402
from bench_serving import Cell, drive  # noqa: E402
from ngh2 import Connection as Client  # noqa: E402
from ngh2 import Role  # noqa: E402
from serving import sides as known  # noqa: E402
from serving.machine import PACKAGES, about  # noqa: E402
from serving.sides import oip_binary, rows_json  # noqa: E402
from uvicorn.server import ServerState  # noqa: E402

from app.application import create_app  # noqa: E402
from app.config.settings import Settings  # noqa: E402
from app.engine.codec import numbers  # noqa: E402
from app.engine.results import BatchResult, InferenceResult  # noqa: E402
from app.grpc.http2.connection import Connection as GrpcConnection  # noqa: E402
from app.grpc.http2.context import Context  # noqa: E402
from app.grpc.http2.framing import framed  # noqa: E402
from app.grpc.services import Services  # noqa: E402
from app.http.connection.protocol import Connection  # noqa: E402
from app.process.worker import make_config  # noqa: E402
from app.system.tuning import freeze_collector  # noqa: E402


class Transport:
    """Takes answers and forgets them but the last."""

    answers = 0
    last = b""

    def write(self, data):
        Transport.answers += 1
        Transport.last = data

    def writelines(self, pieces):
        self.write(b"".join(pieces))

    def get_extra_info(self, *_, **__):
        return None

    def is_closing(self):
        return False

    def resume_reading(self):
        pass

    def get_write_buffer_size(self):
        return 0


def request(path, headers, body):
    lines = [f"POST {path} HTTP/1.1", "Host: 127.0.0.1:8000", *[f"{name}: {value}" for name, value in headers.items()]]
    return "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode() + body


def best_us(function, repeats):
    best = float("inf")
    for _ in range(max(1, round(repeats))):
        began = time.perf_counter()
        function()
        best = min(best, time.perf_counter() - began)
    return 1e6 * best


def stages(serving, requests, share):
    """(name, µs) of what a request consists of; of the usual repeats only a share."""
    model, codec = serving.model, serving.codec
    found = []
    for rows in (1, 32):
        headers, body = requests["json", rows]
        headers = {name.lower().encode(): value.encode() for name, value in headers.items()}
        repeats = share * 3000 / rows
        found.append((f"simdjson alone, {rows} rows", best_us(lambda body=body: numbers.parse(body), repeats)))
        found.append((f"decode JSON, {rows} rows", best_us(partial(codec.read, headers, b"", body, "plain"), repeats)))
    headers, body = requests["binary", 32]
    headers = {name.lower().encode(): value.encode() for name, value in headers.items()}
    found.append(("decode binary, 32 rows", best_us(partial(codec.read, headers, b"", body, "oip"), share * 1000)))
    encode_result = codec.encoder(
        *codec.read({b"content-type": b"application/json"}, b"", requests["json", 1][1], "plain")
    )
    for rows in (1, 32, 64, 256):
        x = np.random.default_rng(0).random((rows, 784), np.float32)
        feeds = {model.inputs[0].name: x}
        found.append(
            (f"session.run, {rows} rows", best_us(lambda f=feeds: model.run(f, model.output_names), share * 200))
        )
        outputs = model.run(feeds, model.output_names).arrays
        if rows in (1, 64):

            def encode(rows=rows, outputs=outputs):
                batch = BatchResult(model, model.output_names, outputs)
                for row in range(rows):
                    encode_result(InferenceResult(batch, row, row + 1))

            found.append((f"encode JSON with labels, a row of {rows}", best_us(encode, share * 500) / rows))
    return found


async def whole(config, requests, profiler, share):
    """(name, µs) of a request from the first byte to the last, many at a time."""
    state = ServerState()
    state.default_headers = [(b"date", b"Mon, 01 Jan 2026 00:00:00 GMT")]
    found = []
    paths = {"json": "/predict", "binary": "/v2/models/digits/infer"}
    for kind, rows, clients, repeats in [
        ("json", 1, 1, 2000),
        ("json", 1, 64, 200),
        ("json", 32, 8, 60),
        ("binary", 32, 8, 200),
    ]:
        data = request(paths[kind], *requests[kind, rows])
        connections = []
        for _ in range(clients):
            connection = Connection(config, state, {})
            connection.connection_made(Transport())
            connections.append(connection)
        best = float("inf")
        for _ in range(max(1, round(share * repeats))):
            Transport.answers = 0
            if profiler and clients == 64:
                profiler.enable()
            began = time.perf_counter()
            for connection in connections:
                feed(connection, memoryview(data))
            while Transport.answers < clients:
                await asyncio.sleep(0)
            best = min(best, (time.perf_counter() - began) / clients)
            if profiler:
                profiler.disable()
        if not Transport.last.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(Transport.last.decode())
        found.append((f"whole request, {rows} rows {kind}, {clients} at a time", 1e6 * best))
    return found


class Http2Client:
    """Client of one gRPC connection in memory; its work is not timed."""

    def __init__(self, context):
        self._session = Client(Role.CLIENT)
        self._session.initiate_connection()
        self._written = []
        self.connection = GrpcConnection(context, lambda _: None, lambda _: None)
        self.connection.connection_made(self)
        feed(self.connection, memoryview(self._session.data_to_send()))
        self.read()

    def request(self, content):
        """The bytes of one call."""
        fields = {":method": "POST", ":scheme": "http", ":authority": "127.0.0.1:8001", ":path": METHOD}
        fields |= {"content-type": "application/grpc", "te": "trailers", "user-agent": "profile"}
        number = self._session.send_request([(name.encode(), value.encode()) for name, value in fields.items()])
        for piece in framed(content):
            self._session.send_data(number, piece)
        self._session.end_stream(number)
        return memoryview(self._session.data_to_send())

    def read(self):
        """The events of all that the server has written."""
        self._session.receive_data(b"".join(self._written))
        self._written.clear()
        return self._session.events()

    # As a transport.

    def write(self, data):
        self._written.append(data)

    def get_extra_info(self, *_, **__):
        return None

    def set_write_buffer_limits(self, *_):
        pass

    def is_closing(self):
        return False


async def whole_grpc(application, share, profiler=None):
    """(name, µs) of a call over gRPC from the first byte to the last, many at a time."""
    context = Context(Services(application.state.panther))
    found = []
    for rows, clients, repeats in [(1, 1, 2000), (1, 64, 200), (32, 8, 200)]:
        content = message(np.random.default_rng(3).random((rows, 784), np.float32))
        sides = [Http2Client(context) for _ in range(clients)]
        best = float("inf")
        for _ in range(max(1, round(share * repeats))):
            asked = [side.request(content) for side in sides]
            if profiler and clients == 64:
                profiler.enable()
            began = time.perf_counter()
            for side, data in zip(sides, asked, strict=True):
                feed(side.connection, data)
            while any(side.connection.streams for side in sides):
                await asyncio.sleep(0)
            best = min(best, (time.perf_counter() - began) / clients)
            if profiler:
                profiler.disable()
            events = [event for side in sides for event in side.read()]
            trailers = [dict(event.headers) for event in events if type(event).__name__ == "TrailersReceived"]
            if [each.get(b"grpc-status") for each in trailers] != [b"0"] * clients:
                raise RuntimeError(str(events)[:500])
        found.append((f"whole call over gRPC, {rows} rows, {clients} at a time", 1e6 * best))
    return found


CELLS = {
    "1 row JSON, 1 client": ("json", 1, 1),
    "1 row JSON, 64 clients": ("json", 1, 64),
    "32 rows JSON, 8 clients": ("json", 32, 8),
    "32 rows binary, 8 clients": ("binary", 32, 8),
    "gRPC, 1 row, 1 client": ("grpc", 1, 1),
    "gRPC, 1 row, 64 clients": ("grpc", 1, 64),
    "gRPC, 32 rows, 8 clients": ("grpc", 32, 8),
}
"""Kind, rows and clients of what is driven over sockets."""


def over_sockets(arguments):
    """Processor time of a request, in µs, by side and cell: the least of several runs, in turn."""
    model = arguments.model_dir.resolve() / "digits" / "1" / "model.onnx"
    ours = known.ours(arguments.model_dir.resolve())
    ours.command += ["--grpc-port", "{grpc_port}", "--grpc-transport", "nghttp2"]
    bare = known.uvicorn_side("bare uvicorn", "bare:app", check=False, binary=True)
    found = {ours.name: {}, bare.name: {}}
    with tempfile.TemporaryDirectory() as name, (Path(name) / "servers.log").open("w") as log:
        load = Load(arguments.client_core, arguments.seconds, Path(name))
        try:
            for side in (ours, bare):
                side.start(model, arguments.server_core, log)
            for _ in range(arguments.rounds):
                for cell, (kind, rows, clients) in CELLS.items():
                    for side in (ours,) if kind == "grpc" else (ours, bare):
                        if kind == "grpc":
                            us = drive_grpc(side, rows, clients, load)["cpu_us"]
                        else:
                            us = drive(side, Cell(cell, kind, rows, clients), load.core, load.seconds, load.folder)[
                                "cpu_us"
                            ]
                        found[side.name][cell] = min(us, found[side.name].get(cell, us))
        finally:
            for side in (ours, bare):
                side.stop()
    return {name: {cell: round(us, 1) for cell, us in row.items()} for name, row in found.items()}


def feed(connection, data):
    while len(data):
        buffer = connection.get_buffer(-1)
        count = min(len(buffer), len(data))
        buffer[:count] = data[:count]
        connection.buffer_updated(count)
        data = data[count:]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-dir", type=Path, default=ROOT / "models")
    parser.add_argument("--functions", action="store_true")
    parser.add_argument("--only", choices=("http", "grpc"), help="whole requests over one protocol")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--quick", action="store_true", help="one repeat of each: a smoke test, not a measurement")
    parser.add_argument("--output", type=Path, help="write the figures, and those over sockets, as JSON")
    parser.add_argument("--rounds", type=int, default=3, help="over sockets")
    parser.add_argument("--seconds", type=int, default=2, help="of each run over sockets")
    parser.add_argument("--server-core", type=int, default=0)
    parser.add_argument("--client-core", type=int, default=1)
    arguments = parser.parse_args()
    share = 0 if arguments.quick else 1
    settings = Settings(model_dir=arguments.model_dir, num_threads=1, device="cpu")
    application = create_app(settings)
    state = application.state.panther
    state.repository.load_all()
    state.repository.started()
    config = make_config(application, settings)
    config.load()
    freeze_collector()
    rng = np.random.default_rng(3)
    requests = {("json", rows): rows_json(rng.random((rows, 784), np.float32), "float64") for rows in (1, 32)}
    requests["binary", 32] = oip_binary(rng.random((32, 784), np.float32))
    profiler = cProfile.Profile() if arguments.functions else None
    found = [] if profiler or arguments.only else stages(state.repository.get("digits"), requests, share)
    if arguments.only in (None, "http"):
        found += uvloop.run(whole(config, requests, profiler, share))
    if arguments.only in (None, "grpc"):
        found += uvloop.run(whole_grpc(application, share, profiler))
    if arguments.output is not None:
        result = {
            "benchmark": "profile",
            **about((*PACKAGES, "uvloop", "ngh2", "protobuf")),
            "settings": {"server_cores": 1, "onnxruntime_threads": 1, "rounds": arguments.rounds},
            "in_process_us": {name: round(us, 2) for name, us in found},
            "over_sockets_us": over_sockets(arguments),
        }
        arguments.output.write_text(json.dumps(result, indent=1) + "\n")
    if profiler:
        pstats.Stats(profiler).sort_stats("tottime").print_stats(25)
    elif arguments.json:
        print(json.dumps({name: round(us, 2) for name, us in found}, indent=1))
    else:
        for name, us in found:
            print(f"{us:9.2f} µs  {name}")


if __name__ == "__main__":
    main()
