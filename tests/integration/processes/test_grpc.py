"""gRPC in processes: keys, deadlines, cancelled calls, workers, graceful shutdown, and ports that are taken."""

import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest
from helpers import processes
from helpers.grpc_client import SERVICE, TRANSPORTS, call, infer, infer_request, pb, refused
from helpers.processes import LIMIT_S, linear, put, running, slow

KEY, CONTROL_KEY = "k" * 16, "c" * 16


@pytest.fixture(params=TRANSPORTS)
def grpc_arguments(request):
    return "--grpc-port", 0, "--grpc-transport", request.param


def slow_request(count):
    return infer_request("slow", "INT64", (1,), int64_contents=[count])


def outcomes(server, outcome):
    return server.metric(f'panther_requests_total{{model="slow",outcome="{outcome}",protocol="grpc",version="1"}}') or 0


def test_keys_are_those_of_http(tmp_path, grpc_arguments):
    put(tmp_path, linear(7.0), "m", 1)
    keys = {"PANTHER_PREDICT_KEYS": KEY, "PANTHER_CONTROL_KEYS": CONTROL_KEY}
    with running(tmp_path, *grpc_arguments, "--model-control", "explicit", **keys) as server:
        request = infer_request("m", raw=bytes(24))
        assert call(server.grpc, "ServerReady", b"", pb.ServerReadyResponse).ready
        said = "an API key is required; send one as 'Authorization: Bearer KEY' or 'X-API-Key: KEY'"
        assert refused(server.grpc, "ModelInfer", request) == ("UNAUTHENTICATED", said)
        assert refused(server.grpc, "ModelMetadata", pb.ModelMetadataRequest(name="m")) == ("UNAUTHENTICATED", said)
        wrong = (("authorization", "Bearer " + "x" * 16),)
        status, details = refused(server.grpc, "ModelInfer", request, metadata=wrong)
        assert (status, details.partition(";")[0]) == ("UNAUTHENTICATED", "the API key is unknown")
        for metadata in ((("authorization", f"Bearer {KEY}"),), (("x-api-key", KEY),)):
            assert infer(server.grpc, request, metadata=metadata).model_name == "m"
        unload = pb.RepositoryModelUnloadRequest(model_name="m")
        status, details = refused(server.grpc, "RepositoryModelUnload", unload, metadata=(("x-api-key", KEY),))
        assert (status, "allows inference, but not to load" in details) == ("PERMISSION_DENIED", True)
        call(server.grpc, "RepositoryModelUnload", unload, metadata=(("x-api-key", CONTROL_KEY),))


def test_control_is_off_by_default(tmp_path):
    put(tmp_path, linear(7.0), "m", 1)
    with running(tmp_path, "--grpc-port", 0) as server:
        status, details = refused(server.grpc, "RepositoryModelLoad", pb.RepositoryModelLoadRequest(model_name="m"))
        assert status == "PERMISSION_DENIED"
        assert "model_control" in details


def test_deadlines_and_cancelled_calls_withdraw_a_request_from_the_queue(tmp_path, grpc_arguments):
    put(tmp_path, slow(), "slow", 1)
    depth, runs = (f'panther_{name}{{model="slow",version="1"}}' for name in ("queue_depth", "batch_rows_count"))
    with (
        running(tmp_path, *grpc_arguments, "--inline-run-us", 0) as server,
        grpc.insecure_channel(server.grpc) as channel,
    ):
        grpc.channel_ready_future(channel).result(LIMIT_S)
        ask = channel.unary_unary(SERVICE + "ModelInfer")
        count = server.runs_for(60.0)
        ran, cpu_s = server.metric(runs), server.cpu_seconds()
        long = ask.future(slow_request(count).SerializeToString())
        server.wait_for(lambda: server.cpu_seconds() > cpu_s + 0.2)
        with pytest.raises(grpc.RpcError) as found:
            ask(slow_request(1).SerializeToString(), timeout=1)
        assert found.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        # Where the call was long on its way, the client's own end of it comes first.
        server.wait_for(lambda: outcomes(server, "DeadlineExceededError") + outcomes(server, "Cancelled") == 1)
        before = outcomes(server, "Cancelled")
        request = slow_request(1)
        request.parameters["timeout"].int64_param = 100_000
        status, details = refused(server.grpc, "ModelInfer", request)
        assert (status, "longer than its timeout" in details) == ("DEADLINE_EXCEEDED", True)
        left = ask.future(slow_request(1).SerializeToString())
        server.wait_for(lambda: server.metric(depth) == 1)
        left.cancel()
        server.wait_for(lambda: outcomes(server, "Cancelled") == before + 1)
        assert server.metric(depth) == 0
        assert server.metric(runs) == ran
        long.cancel()  # the only one of its run, which is stopped
        assert ask(slow_request(1).SerializeToString(), timeout=LIMIT_S)


def test_a_full_queue_says_when_to_try_again(tmp_path):
    put(tmp_path, slow(), "slow", 1)
    arguments = ("--grpc-port", 0, "--inline-run-us", 0, "--max-queue-rows", 1)
    with running(tmp_path, *arguments) as server, ThreadPoolExecutor(4) as pool:
        server.begin_slow_run(pool, 4.0)
        waiting = pool.submit(infer, server.grpc, slow_request(1))
        server.wait_for(lambda: server.metric('panther_queue_depth{model="slow",version="1"}') == 1)
        with grpc.insecure_channel(server.grpc) as channel, pytest.raises(grpc.RpcError) as found:
            channel.unary_unary(SERVICE + "ModelInfer")(slow_request(1).SerializeToString(), timeout=LIMIT_S)
        assert found.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "more than max_queue_rows (1)" in found.value.details()
        metadata = dict(found.value.trailing_metadata())
        assert int(metadata["grpc-retry-pushback-ms"]) == 1000 * int(metadata["retry-after"]) > 0
        assert waiting.result(LIMIT_S).model_name == "slow"


@pytest.mark.parametrize(("workers", "transport"), [(1, "nghttp2"), (1, "grpcio"), (2, "nghttp2")])
def test_a_graceful_shutdown_answers_what_is_in_flight(tmp_path, workers, transport):
    put(tmp_path, slow(), "slow", 1)
    arguments = ("--grpc-port", 0, "--grpc-transport", transport)
    with running(tmp_path, *arguments, workers=workers) as server, ThreadPoolExecutor(4) as pool:
        count = server.runs_for(2.0)
        before, address = server.cpu_seconds(), server.grpc
        ended = pool.submit(infer, address, slow_request(count))
        server.wait_for(lambda: server.cpu_seconds() > before + 0.2)
        assert server.end() == 0
        assert ended.result(LIMIT_S).model_name == "slow"
        assert refused(address, "ServerLive", b"", timeout=5)[0] in ("UNAVAILABLE", "DEADLINE_EXCEEDED")


def test_what_does_not_end_in_time_is_told_that_the_server_ends(tmp_path, grpc_arguments):
    put(tmp_path, slow(), "slow", 1)
    arguments = (*grpc_arguments, "--shutdown-timeout-s", 1, "--inline-run-us", 0)
    with running(tmp_path, *arguments) as server, ThreadPoolExecutor(4) as pool:
        count = server.runs_for(20.0)
        before = server.cpu_seconds()
        ended = pool.submit(refused, server.grpc, "ModelInfer", slow_request(count))
        server.wait_for(lambda: server.cpu_seconds() > before + 0.2)
        server.end()
        assert ended.result(LIMIT_S) == ("UNAVAILABLE", "the server is shutting down")


def test_workers_share_the_port_and_their_counts(tmp_path, grpc_arguments):
    put(tmp_path, linear(7.0), "m", 1)
    with running(tmp_path, *grpc_arguments, workers=2) as server:
        for _ in range(40):  # each on a connection of its own
            answer = infer(server.grpc, infer_request("m", raw=bytes(24)))
            np.testing.assert_array_equal(np.frombuffer(answer.raw_output_contents[0], np.float32), [7, 7])
        assert server.metric('panther_rows_total{model="m",protocol="grpc",version="1"}') == 40
        busy = [pid for pid in server.children() if f"{int(server.grpc.rpartition(':')[2]):04X}" in listening(pid)]
        assert len(busy) == 2


def listening(pid):
    """The ports that a process listens on, in hexadecimal."""
    mine = {str(link.readlink()) for link in (processes.proc(pid) / "fd").iterdir()}
    tables = [(processes.proc(pid) / "net" / name).read_text() for name in ("tcp", "tcp6")]
    lines = [line.split() for table in tables for line in table.splitlines()[1:]]
    return {line[1].rpartition(":")[2] for line in lines if line[3] == "0A" and f"socket:[{line[9]}]" in mine}


def run(*arguments, program=("-m", "app")):
    command = [sys.executable, *program, *map(str, arguments)]
    return subprocess.run(command, cwd=processes.ROOT, capture_output=True, text=True, timeout=LIMIT_S, check=False)


def test_a_port_that_is_taken_is_told(tmp_path):
    put(tmp_path, linear(7.0), "m", 1)
    with socket.create_server(("127.0.0.1", 0)) as taken, running(tmp_path, "--grpc-port", 0) as other:
        for port in (taken.getsockname()[1], int(other.grpc.rpartition(":")[2])):
            done = run("--port", 0, "--grpc-port", port, "--model-dir", tmp_path)
            said = (
                f"can't listen on 127.0.0.1:{port}: Address already in use; choose another with --host and --grpc-port"
            )
            assert said in done.stderr
            assert "Traceback" not in done.stderr
            assert done.returncode == 1


def test_without_the_extra_the_message_names_it(tmp_path):
    hidden = "import runpy, sys; sys.modules['grpc_health'] = None; runpy.run_module('app', run_name='__main__')"
    done = run("--grpc-port", 0, "--model-dir", tmp_path, program=("-c", hidden))
    said = "grpc_port=0 requires the extra 'grpc' (pip install 'panther-sketch[grpc]'): package 'grpc_health' is not"
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert done.returncode == 1


def test_without_the_port_nothing_of_grpc_is_imported(tmp_path):
    program = (
        "import sys; from app.application import create_app; from app.config.settings import Settings; "
        f"import app.process.serve; create_app(Settings(model_dir={str(tmp_path)!r})); "
        "print([name for name in sys.modules if name.split('.')[0] in ('grpc', 'google', 'grpc_health', 'ngh2')])"
    )
    assert run(program=("-c", program)).stdout.strip() == "[]"
