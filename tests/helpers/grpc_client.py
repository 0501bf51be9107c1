"""The public gRPC client of the protocol, unmodified, and single calls with its messages."""

from typing import Any

import grpc
import pytest

tritonclient: Any = pytest.importorskip("tritonclient.grpc")
from tritonclient.grpc import service_pb2 as pb  # noqa: E402
from tritonclient.utils import InferenceServerException  # noqa: E402

__all__ = ["TRANSPORTS", "InferenceServerException", "call", "infer", "infer_request", "pb", "refused", "tritonclient"]

LIMIT_S = 60.0
TRANSPORTS = "nghttp2", "grpcio"
"""Of the server."""
SERVICE = "/inference.GRPCInferenceService/"


def call(
    address: str, method: str, message: Any, answer: Any = None, *, timeout=LIMIT_S, metadata=(), **options
) -> Any:
    """The response to one message, which may be bytes; also bytes if its class is not given."""
    given = message if isinstance(message, bytes) else message.SerializeToString()
    with grpc.insecure_channel(address, options=[("grpc.max_receive_message_length", -1)]) as channel:
        content = channel.unary_unary(SERVICE + method)(given, timeout=timeout, metadata=metadata, **options)
    return content if answer is None else answer.FromString(content)


def infer(address: str, message: Any, **options) -> Any:
    return call(address, "ModelInfer", message, pb.ModelInferResponse, **options)


def refused(address: str, method: str, message: Any, **options) -> tuple[str, str]:
    """Status and message of a failing call."""
    with pytest.raises(grpc.RpcError) as found:
        call(address, method, message, **options)
    return found.value.code().name, found.value.details()


def infer_request(model: str, datatype="FP32", shape=(1, 6), raw=None, name="x", **contents) -> Any:
    """A request of one input, raw or typed."""
    request = pb.ModelInferRequest(model_name=model)
    tensor = request.inputs.add(name=name, datatype=datatype, shape=shape)
    if raw is not None:
        request.raw_input_contents.append(raw)
    for field, values in contents.items():
        getattr(tensor.contents, field).extend(values)
    return request
