"""Messages of the Open Inference Protocol and of Triton's extensions, made from descriptors.

``inference.binpb`` holds the descriptors from NVIDIA's package ``tritonclient``, written by
``scripts/grpc-messages``. Their pool is private, because a client library in the same process may register messages of
the same names.

See docs/decisions/0075-grpc-messages-from-descriptors.md.
"""

from importlib.resources import files
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory  # type: ignore[import-untyped]
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from app.engine.codec import Body
from app.errors import InvalidRequestError

SERVICE_NAME = "inference.GRPCInferenceService"

POOL = descriptor_pool.DescriptorPool()
for _file in descriptor_pb2.FileDescriptorSet.FromString(
    files("app.grpc").joinpath("inference.binpb").read_bytes()
).file:
    POOL.Add(_file)


def message_class(name: str) -> Any:
    """The class of a protocol message, by its name."""
    return message_factory.GetMessageClass(POOL.FindMessageTypeByName(f"inference.{name}"))


def methods() -> dict[str, Any]:
    """The descriptors of all methods of the service, by name."""
    return dict(POOL.FindServiceByName(SERVICE_NAME).methods_by_name)


ModelInferRequest = message_class("ModelInferRequest")
ModelInferResponse = message_class("ModelInferResponse")
InferTensorContents = message_class("InferTensorContents")


def parse(message: type, data: Body) -> Any:
    """Parse a message.

    Raises:
        InvalidRequestError: The bytes are not a valid message.
    """
    try:
        return message.FromString(data)  # type: ignore[attr-defined]
    except (DecodeError, UnicodeDecodeError):  # the second one by protobuf's implementation in Python
        raise InvalidRequestError(
            f"the {len(data)} bytes of the request are not a valid protobuf message {message.__name__}"
        ) from None
