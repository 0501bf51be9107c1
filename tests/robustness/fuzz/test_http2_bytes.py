"""Odd bytes of HTTP/2 on the port of gRPC: the server answers, refuses or hangs up, and keeps nothing of them."""

import contextlib
import socket

import ngh2
import numpy as np
import pytest
from helpers import processes
from helpers.grpc_client import SERVICE, call, infer_request, pb

CONNECTIONS = 1500
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEALTH = "/grpc.health.v1.Health/"
REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"


def frames(data):
    """The frames of a client, after its preface."""
    found, start = [], len(PREFACE)
    while start < len(data):
        end = start + 9 + int.from_bytes(data[start : start + 3])
        found.append(data[start:end])
        start = end
    return found


def captures():
    """What clients send: each capture is a whole connection."""
    message = infer_request("m", raw=bytes(24)).SerializeToString()
    framed = b"\0" + len(message).to_bytes(4) + message
    calls = [
        (SERVICE + "ModelInfer", framed),
        (SERVICE + "ModelMetadata", b"\0\0\0\0\3\x0a\1m"),
        (HEALTH + "Check", bytes(5)),
        (HEALTH + "Watch", bytes(5)),
        (REFLECTION, b"\0\0\0\0\2\x3a\0" * 3),
        (SERVICE + "Nothing", bytes(5)),
    ]
    for chosen in ([calls[0]], calls, [calls[0]] * 20):
        client = ngh2.Connection(ngh2.Role.CLIENT)
        client.initiate_connection({4: 2**20})
        sent = client.data_to_send()
        for path, content in chosen:
            fields = [
                (b":method", b"POST"), (b":scheme", b"http"), (b":authority", b"x"), (b":path", path.encode()),
                (b"content-type", b"application/grpc"), (b"te", b"trailers"), (b"grpc-timeout", b"5S"),
            ]  # fmt: skip
            number = client.send_request(fields)
            client.send_data(number, content[:7])
            sent += client.data_to_send()
            client.send_data(number, content[7:], end_stream=True)
            client.ping()
            sent += client.data_to_send()
        client.reset_stream(1)
        client.send_goaway()
        yield sent + client.data_to_send()


def odd_frame(rng):
    """A frame of any kind, of which nothing is right but its length."""
    content = rng.bytes(int(rng.choice([0, 1, 4, 5, 8, 9, 64])))
    number = int(rng.choice([0, 1, 2, 3, 2**31 - 1]))
    kind, flags = int(rng.integers(0, 17)), int(rng.integers(256))
    return len(content).to_bytes(3) + bytes([kind, flags]) + number.to_bytes(4) + content


def mutated(rng, data):
    """A connection with frames left out, doubled, swapped, cut or made up, and with bytes changed."""
    found = frames(data)
    for _ in range(int(rng.integers(1, 5))):
        place = int(rng.integers(len(found)))
        kind = int(rng.integers(6))
        if kind == 0 and len(found) > 1:
            del found[place]
        elif kind == 1:
            found[place:place] = [found[place]] * int(rng.integers(1, 30))
        elif kind == 2:
            found[place:place] = [odd_frame(rng) for _ in range(int(rng.integers(1, 5)))]
        elif kind == 3:
            found[place] = found[place][: int(rng.integers(len(found[place]) + 1))]
        else:
            changed = bytearray(found[place])
            for _ in range(int(rng.integers(1, 4))):
                if changed:
                    changed[int(rng.integers(len(changed)))] = int(rng.integers(256))
            found[place] = bytes(changed)
    preface = PREFACE if rng.integers(20) else PREFACE[: int(rng.integers(len(PREFACE)))]
    return preface + b"".join(found)


def descriptors(pid):
    """Number of open files and sockets of a process."""
    return sum(1 for _ in (processes.proc(pid) / "fd").iterdir())


def connect(rng, address, sent):
    """Send bytes on a connection; how many came back."""
    host, _, port = address.rpartition(":")
    count = 0
    with socket.create_connection((host, int(port)), timeout=60) as sock, contextlib.suppress(ConnectionError):
        sock.sendall(sent)
        manner = rng.integers(3)
        if manner == 0:  # reads to the end
            sock.shutdown(socket.SHUT_WR)
            while piece := sock.recv(65536):
                count += len(piece)
        elif manner == 1:  # reads what comes first; the others leave without a word
            count += len(sock.recv(65536))
    return count


@pytest.mark.timeout(300)
def test_a_server_survives_odd_bytes_and_keeps_nothing_of_them(tmp_path):
    rng = np.random.default_rng(11)
    processes.put(tmp_path, processes.linear(7.0), "m", 1)
    right = infer_request("m", raw=bytes(24)).SerializeToString()
    seeds = list(captures())
    arguments = ("--grpc-port", 0, "--grpc-transport", "nghttp2", "--header-timeout-s", 1, "--body-timeout-s", 1)
    with processes.running(tmp_path, *arguments) as server:
        assert call(server.grpc, "ModelInfer", right, pb.ModelInferResponse).model_name == "m"
        at_rest = descriptors(server.pid)
        assert sum(connect(rng, server.grpc, seed) for seed in 4 * seeds) > 100
        answered, memory = 0, 0
        for number in range(CONNECTIONS):
            if number == CONNECTIONS // 3:
                memory = server.resident_bytes()
            answered += connect(rng, server.grpc, mutated(rng, seeds[number % len(seeds)]))
        assert answered > 10_000  # much of it was still understood
        server.wait_for(lambda: descriptors(server.pid) <= at_rest)
        assert server.resident_bytes() < memory + 16 * 1024 * 1024
        assert call(server.grpc, "ModelInfer", right, pb.ModelInferResponse).model_name == "m"
        assert " failed" not in server.log
