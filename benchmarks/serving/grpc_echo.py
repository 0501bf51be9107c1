"""A gRPC service by grpcio that answers a constant: `python grpc_echo.py aio|threads PORT`.

What grpcio takes for a call, in the event loop that our server has, or with threads of its own: no service on it can be
quicker.
"""

import sys
from concurrent.futures import ThreadPoolExecutor

import grpc
import uvloop

SERVICE = "inference.GRPCInferenceService"
ANSWER = bytes(73)  # as many as an answer with ten logits has
THREADS = 8


async def answer_from_loop(message, context):  # noqa: ARG001
    return ANSWER


def answer_from_thread(message, context):  # noqa: ARG001
    return ANSWER


def prepared(server, answer, port):
    method = grpc.unary_unary_rpc_method_handler(answer)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {"ModelInfer": method}),))
    server.add_insecure_port(f"127.0.0.1:{port}")
    return server


async def serve_from_loop(port):
    server = prepared(grpc.aio.server(), answer_from_loop, port)
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    if sys.argv[1] == "aio":
        uvloop.run(serve_from_loop(sys.argv[2]))
    else:
        server = prepared(grpc.server(ThreadPoolExecutor(THREADS)), answer_from_thread, sys.argv[2])
        server.start()
        server.wait_for_termination()
