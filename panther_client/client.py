"""The clients: ``Client`` blocks, ``AsyncClient`` is awaited. Both support HTTP and gRPC, by the URL."""

import asyncio
import time
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from panther_client.calls import InferOptions
from panther_client.http_transport import require_httpx
from panther_client.operations import Operations, Pause, Result, Steps
from panther_client.retries import Retries
from panther_client.url import ServerUrl, check_key
from panther_client.wire import InferResult, PredictResult

if TYPE_CHECKING:
    import httpx

__all__ = ["AsyncClient", "Client", "Retries"]


class Client:
    """Sends requests to a server and waits for the responses.

    Args:
        url: URL of the server: ``http://127.0.0.1:8000`` or ``grpc://127.0.0.1:8001``; with TLS ``https://`` or
            ``grpcs://``. gRPC requires the extra ``client-grpc``.
        timeout_s: Time limit for one method call, including retries. ``infer`` sends it to the
            server, which drops a request that has waited for that long.
        retries: Retries if the server is overloaded or unreachable; ``Retries(0)`` disables them.
        headers: Headers for every request; for gRPC as metadata.
        api_key: Key for every request, sent as ``Authorization: Bearer``; also applies to the client in ``http``.
        http: An httpx client to use instead of a new one; it is not closed. Its base URL must be the server's URL.

    Raises:
        InvalidRequestError: The URL or the key is invalid.
        MissingExtraError: The packages for the URL's protocol are not installed.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout_s: float = 60.0,
        retries: Retries | None = None,
        headers: dict[str, str] | None = None,
        api_key: str | None = None,
        http: "httpx.Client | None" = None,
    ) -> None:
        key = check_key(api_key)
        place = None if http is not None else ServerUrl.of(url)
        self._transport: Any
        if place is not None and place.grpc:
            calls, transport = place.grpc_parts()
            self._transport = transport.GrpcTransport(place.address, {**(headers or {}), **key}, secure=place.secure)
        else:
            from panther_client.http_calls import HttpCalls
            from panther_client.http_transport import HttpTransport

            require_httpx()
            import httpx

            calls = HttpCalls()
            own = http is None
            self._transport = HttpTransport(http or httpx.Client(base_url=url, headers=headers), key, own=own)
        self._operations = Operations(calls, retries or Retries(), timeout_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._transport.close()

    def _run(self, steps: Steps[Result]) -> Result:
        reply = None
        while True:
            try:
                step = steps.send(reply)
            except StopIteration as end:
                result: Result = end.value
                return result
            if isinstance(step, Pause):
                time.sleep(step.seconds)
                reply = None
            else:
                reply = self._transport.send(step.call, step.timeout_s)

    def metadata(self, model: str, version: str | int | None = None) -> Any:
        """Inputs and outputs of a model."""
        return self._run(self._operations.metadata(model, version))

    def infer(
        self,
        model: str,
        inputs: Any,
        *,
        version: str | int | None = None,
        outputs: Sequence[str] | None = None,
        request_id: str | None = None,
        priority: int | None = None,
        timeout_us: int | None = None,
        binary: bool = True,
    ) -> InferResult:
        """Run a model by the Open Inference Protocol.

        Args:
            model: Name of the model.
            inputs: An array (rows first) for the only input, or a mapping of names to arrays.
            version: Version of the model; by default the server's default version.
            outputs: Names of the outputs to return; by default all.
            request_id: Returned in the result.
            priority: 1 is the highest.
            timeout_us: Time in the queue after which the server drops the request; by default ``timeout_s``.
            binary: Whether to use binary tensors; otherwise JSON numbers, except for float16 and bfloat16. gRPC always
                uses binary tensors.

        Raises:
            ClientError: Or a subclass.
        """
        options = InferOptions(outputs, request_id, priority, timeout_us, binary)
        return self._run(self._operations.infer(model, inputs, version, options))

    def predict(
        self, inputs: Any, *, model: str | None = None, version: str | int | None = None, top_k: int | None = None
    ) -> PredictResult:
        """Run a model by the plain API: outputs, and labels if the model has them.

        gRPC has no plain API: ``model`` is required, a table must have a column per input, and there are no labels.

        Args:
            inputs: An array for the model's only input; or a table: a list of dicts, a dict of lists by
                column name, a pandas DataFrame, or CSV as text with column names in the first line.
            model: Name of the model; by default the server's default model.
            version: Version of the model; by default the server's default version.
            top_k: Number of labels to rank per row.
        """
        return self._run(self._operations.predict(inputs, model, version, top_k))

    def predict_frame(self, frame: Any, *, model: str | None = None, version: str | int | None = None) -> Any:
        """Run a model on a DataFrame (pandas or compatible), and return one; see ``PredictResult.to_frame``."""
        return self.predict(frame, model=model, version=version).to_frame(frame)

    def is_ready(self) -> bool:
        """Whether the server is ready."""
        return self._run(self._operations.is_ready())

    def models(self) -> list[dict[str, Any]]:
        """The served models; over gRPC, the entries of the repository's index."""
        return self._run(self._operations.models())

    def stats(self, model: str | None = None) -> dict[str, Any]:
        """Parameter savings and live counters; over gRPC the protocol's statistics."""
        return self._run(self._operations.stats(model))

    def load(self, model: str) -> None:
        """Load a model again from the server's model folder."""
        self._run(self._operations.control("load", model))

    def unload(self, model: str) -> None:
        """Stop serving a model."""
        self._run(self._operations.control("unload", model))


class AsyncClient:
    """The client with awaitable methods; see ``Client`` for the arguments."""

    def __init__(
        self,
        url: str,
        *,
        timeout_s: float = 60.0,
        retries: Retries | None = None,
        headers: dict[str, str] | None = None,
        api_key: str | None = None,
        http: "httpx.AsyncClient | None" = None,
    ) -> None:
        key = check_key(api_key)
        place = None if http is not None else ServerUrl.of(url)
        self._transport: Any
        if place is not None and place.grpc:
            calls, transport = place.grpc_parts()
            self._transport = transport.AsyncGrpcTransport(
                place.address, {**(headers or {}), **key}, secure=place.secure
            )
        else:
            from panther_client.http_calls import HttpCalls
            from panther_client.http_transport import AsyncHttpTransport

            require_httpx()
            import httpx

            calls = HttpCalls()
            own = http is None
            self._transport = AsyncHttpTransport(http or httpx.AsyncClient(base_url=url, headers=headers), key, own=own)
        self._operations = Operations(calls, retries or Retries(), timeout_s)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._transport.close()

    async def _run(self, steps: Steps[Result]) -> Result:
        reply = None
        while True:
            try:
                step = steps.send(reply)
            except StopIteration as end:
                result: Result = end.value
                return result
            if isinstance(step, Pause):
                await asyncio.sleep(step.seconds)
                reply = None
            else:
                reply = await self._transport.send(step.call, step.timeout_s)

    async def metadata(self, model: str, version: str | int | None = None) -> Any:
        """Inputs and outputs of a model."""
        return await self._run(self._operations.metadata(model, version))

    async def infer(
        self,
        model: str,
        inputs: Any,
        *,
        version: str | int | None = None,
        outputs: Sequence[str] | None = None,
        request_id: str | None = None,
        priority: int | None = None,
        timeout_us: int | None = None,
        binary: bool = True,
    ) -> InferResult:
        """Run a model by the Open Inference Protocol; see ``Client.infer``."""
        options = InferOptions(outputs, request_id, priority, timeout_us, binary)
        return await self._run(self._operations.infer(model, inputs, version, options))

    async def predict(
        self, inputs: Any, *, model: str | None = None, version: str | int | None = None, top_k: int | None = None
    ) -> PredictResult:
        """Run a model by the plain API; see ``Client.predict``."""
        return await self._run(self._operations.predict(inputs, model, version, top_k))

    async def predict_frame(self, frame: Any, *, model: str | None = None, version: str | int | None = None) -> Any:
        """Run a model on a DataFrame; see ``Client.predict_frame``."""
        return (await self.predict(frame, model=model, version=version)).to_frame(frame)

    async def is_ready(self) -> bool:
        """Whether the server is ready."""
        return await self._run(self._operations.is_ready())

    async def models(self) -> list[dict[str, Any]]:
        """The served models; see ``Client.models``."""
        return await self._run(self._operations.models())

    async def stats(self, model: str | None = None) -> dict[str, Any]:
        """Parameter savings and live counters; see ``Client.stats``."""
        return await self._run(self._operations.stats(model))

    async def load(self, model: str) -> None:
        """Load a model again from the server's model folder."""
        await self._run(self._operations.control("load", model))

    async def unload(self, model: str) -> None:
        """Stop serving a model."""
        await self._run(self._operations.control("unload", model))
