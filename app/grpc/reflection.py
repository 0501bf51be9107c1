"""Server reflection, which lets tools such as grpcurl discover the methods and their messages."""

from collections.abc import AsyncGenerator, AsyncIterator, Iterable

from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2

from app.grpc.call import Method, Streaming
from app.grpc.messages import POOL, parse

REFLECTION_NAME: str = reflection.SERVICE_NAME


class Reflection:
    """Describes services.

    Args:
        names: Names of the other services.
    """

    def __init__(self, names: Iterable[str]) -> None:
        for module in (health_pb2, reflection_pb2):
            POOL.AddSerializedFile(module.DESCRIPTOR.serialized_pb)
        self._servicer = reflection.ReflectionServicer((*names, REFLECTION_NAME), pool=POOL)

    def methods(self) -> dict[str, Method]:
        """The methods of the service, by name."""
        return {"ServerReflectionInfo": Streaming(self.answer)}

    async def answer(self, messages: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
        """Answer each request."""
        async for message in messages:
            request = parse(reflection_pb2.ServerReflectionRequest, message)
            for answer in self._servicer.ServerReflectionInfo(iter((request,)), None):
                yield answer.SerializeToString()
