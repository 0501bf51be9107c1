"""The clients: ``Client`` blocks, ``AsyncClient`` is awaited; both send and read the same."""

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import httpx

from panther_client import wire
from panther_client.errors import (
    ClientError,
    ConnectionFailedError,
    DeadlineExceededError,
    InvalidRequestError,
    ServerError,
    error_of,
)
from panther_client.wire import InferResult, PredictResult

_RETRIED = (429, 503)
_FIRST_PAUSE_S = 0.1


@dataclass(frozen=True)
class Retries:
    """How often and how long to try again where the server is overloaded.

    Attributes:
        count: tries after the first.
        max_wait_s: a longer Retry-After is not waited for.
    """

    count: int = 3
    max_wait_s: float = 10.0

    def pause_s(self, attempt: int, response: httpx.Response | None) -> float | None:
        """Seconds to wait before the next try; None where there is to be none."""
        if attempt >= self.count:
            return None
        pause = _FIRST_PAUSE_S * 2**attempt
        if response is not None:
            if response.status_code not in _RETRIED:
                return None
            said = response.headers.get("retry-after", "")
            if said.isdecimal():
                pause = float(said)
        return pause if pause <= self.max_wait_s else None


@dataclass(frozen=True)
class _Call:
    """One request, ready to be sent, and how its answer is read."""

    method: str
    path: str
    read: Callable[[httpx.Response], Any]
    headers: dict[str, str] | None = None
    content: bytes | None = None


def _json(response: httpx.Response) -> Any:
    try:
        return json.loads(response.content)
    except ValueError:
        raise ServerError(f"the server answered {response.status_code}, but no JSON: {response.text[:200]}") from None


def _model_path(model: str, version: str | int | None) -> str:
    path = f"/v2/models/{quote(model, safe='')}"
    return path if version is None else f"{path}/versions/{quote(str(version), safe='')}"


def _predict_call(inputs: Any, model: str | None, version: str | int | None, top_k: int | None) -> _Call:
    if version is not None and model is None:
        raise InvalidRequestError("a version needs the name of its model")
    path = "/predict" if model is None else _model_path(model, version).removeprefix("/v2") + "/predict"
    if top_k is not None:
        path += f"?top_k={top_k}"
    content_type, content = wire.encode_rows(inputs)
    headers = {"content-type": content_type, "accept": "application/json"}
    return _Call("POST", path, lambda r: wire.decode_predict(r.content), headers, content)


def _infer_call(metadata: Any, model: str, version: str | int | None, inputs: Any, options: dict[str, Any]) -> _Call:
    headers, content = wire.encode_infer(metadata, inputs, **options)

    def read(response: httpx.Response) -> InferResult:
        return wire.decode_infer(response.headers, response.content)

    return _Call("POST", _model_path(model, version) + "/infer", read, headers, content)


def _failure(error: httpx.HTTPError, url: httpx.URL) -> ClientError:
    if isinstance(error, httpx.TimeoutException) and not isinstance(error, httpx.ConnectTimeout):
        return DeadlineExceededError(f"{url} did not answer in time: {error!r}")
    return ConnectionFailedError(f"{url} can't be reached: {str(error) or type(error).__name__}")


class _Common:
    """What both clients know."""

    def __init__(self, retries: Retries | None, api_key: str | None) -> None:
        if api_key is not None and (
            not api_key.isascii() or not api_key.isprintable() or " " in api_key or not api_key
        ):
            raise InvalidRequestError("api_key must be of visible ASCII characters without spaces")
        self._key = {} if api_key is None else {"authorization": f"Bearer {api_key}"}
        self._retries = retries if retries is not None else Retries()
        self._metadata: dict[tuple[str, str | None], Any] = {}


class Client(_Common):
    """Asks a server and waits for the answer.

    Args:
        url: where the server is, such as ``http://127.0.0.1:8000``.
        timeout_s: longest wait for any answer.
        retries: what to do where the server is overloaded; ``Retries(0)`` never tries again.
        headers: sent with every request.
        api_key: sent with every request as ``Authorization: Bearer``; also with a client of your own.
        http: a client of httpx to use instead of a new one; it is not closed.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout_s: float = 60.0,
        retries: Retries | None = None,
        headers: dict[str, str] | None = None,
        api_key: str | None = None,
        http: httpx.Client | None = None,
    ) -> None:
        super().__init__(retries, api_key)
        self._own = http is None
        self._http = http if http is not None else httpx.Client(base_url=url, timeout=timeout_s, headers=headers)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        if self._own:
            self._http.close()

    def _send(self, call: _Call) -> Any:
        attempt = 0
        while True:
            response: httpx.Response | None = None
            try:
                response = self._http.request(
                    call.method, call.path, headers=self._key | (call.headers or {}), content=call.content
                )
            except httpx.ConnectError as error:
                failure = _failure(error, self._http.base_url)
            except httpx.HTTPError as error:
                raise _failure(error, self._http.base_url) from error
            else:
                if response.is_success:
                    return call.read(response)
                failure = error_of(response.status_code, response.content)
            pause = self._retries.pause_s(attempt, response)
            if pause is None:
                raise failure
            time.sleep(pause)
            attempt += 1

    def metadata(self, model: str, version: str | int | None = None) -> Any:
        """Inputs and outputs of a model."""
        return self._send(_Call("GET", _model_path(model, version), _json))

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
        """Ask a model by the Open Inference Protocol.

        Args:
            model: its name.
            inputs: an array (rows first) for the only input, or a mapping of names to arrays.
            version: of the model; the server's default if left out.
            outputs: names of those to return; all if left out.
            request_id: echoed in the result.
            priority: 1 is the highest.
            timeout_us: the server drops the request after it has waited for that long.
            binary: send and ask for binary tensors (JSON numbers otherwise, but for half and brain floats).

        Raises:
            ClientError: or one of its kinds.
        """
        key = (model, None if version is None else str(version))
        known = self._metadata.get(key)
        metadata = self._metadata[key] = known or self.metadata(model, version)
        options = {
            "outputs": outputs,
            "request_id": request_id,
            "priority": priority,
            "timeout_us": timeout_us,
            "binary": binary,
        }
        try:
            result: InferResult = self._send(_infer_call(metadata, model, version, inputs, options))
        except InvalidRequestError:
            if known is None:
                raise
            # The model may have been replaced by one of other tensors since.
            metadata = self._metadata[key] = self.metadata(model, version)
            if metadata == known:
                raise
            result = self._send(_infer_call(metadata, model, version, inputs, options))
        return result

    def predict(
        self, inputs: Any, *, model: str | None = None, version: str | int | None = None, top_k: int | None = None
    ) -> PredictResult:
        """Ask the plain API: outputs, and labels where the model has them.

        Args:
            inputs: an array for the model's only input; or a table: a list of dicts, a dict of lists by the names of
                the columns, a pandas DataFrame, or CSV as text whose first line names the columns.
            model: its name; the server's default model if left out.
            version: of the model; the server's default if left out.
            top_k: how many labels to rank.
        """
        result: PredictResult = self._send(_predict_call(inputs, model, version, top_k))
        return result

    def is_ready(self) -> bool:
        """Whether the server is ready."""
        try:
            self._send(_Call("GET", "/v2/health/ready", _json))
        except ClientError:
            return False
        return True

    def models(self) -> list[dict[str, Any]]:
        """The served models."""
        found: list[dict[str, Any]] = self._send(_Call("GET", "/models", _json))["models"]
        return found

    def stats(self, model: str | None = None) -> dict[str, Any]:
        """Parameter savings and live figures."""
        path = "/stats" if model is None else f"/models/{quote(model, safe='')}/stats"
        found: dict[str, Any] = self._send(_Call("GET", path, _json))
        return found

    def load(self, model: str) -> None:
        """Load a model again from the server's folder."""
        self._metadata.clear()
        self._send(_Call("POST", f"/v2/repository/models/{quote(model, safe='')}/load", lambda _: None))

    def unload(self, model: str) -> None:
        """Stop serving a model."""
        self._metadata.clear()
        self._send(_Call("POST", f"/v2/repository/models/{quote(model, safe='')}/unload", lambda _: None))


class AsyncClient(_Common):
    """The client with awaitable methods; see ``Client`` for the arguments."""

    def __init__(
        self,
        url: str,
        *,
        timeout_s: float = 60.0,
        retries: Retries | None = None,
        headers: dict[str, str] | None = None,
        api_key: str | None = None,
        http: httpx.AsyncClient | None = None,
    ) -> None:
        super().__init__(retries, api_key)
        self._own = http is None
        self._http = http if http is not None else httpx.AsyncClient(base_url=url, timeout=timeout_s, headers=headers)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        if self._own:
            await self._http.aclose()

    async def _send(self, call: _Call) -> Any:
        attempt = 0
        while True:
            response: httpx.Response | None = None
            try:
                response = await self._http.request(
                    call.method, call.path, headers=self._key | (call.headers or {}), content=call.content
                )
            except httpx.ConnectError as error:
                failure = _failure(error, self._http.base_url)
            except httpx.HTTPError as error:
                raise _failure(error, self._http.base_url) from error
            else:
                if response.is_success:
                    return call.read(response)
                failure = error_of(response.status_code, response.content)
            pause = self._retries.pause_s(attempt, response)
            if pause is None:
                raise failure
            await asyncio.sleep(pause)
            attempt += 1

    async def metadata(self, model: str, version: str | int | None = None) -> Any:
        """Inputs and outputs of a model."""
        return await self._send(_Call("GET", _model_path(model, version), _json))

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
        """Ask a model by the Open Inference Protocol; see ``Client.infer``."""
        key = (model, None if version is None else str(version))
        known = self._metadata.get(key)
        metadata = self._metadata[key] = known or await self.metadata(model, version)
        options = {
            "outputs": outputs,
            "request_id": request_id,
            "priority": priority,
            "timeout_us": timeout_us,
            "binary": binary,
        }
        try:
            result: InferResult = await self._send(_infer_call(metadata, model, version, inputs, options))
        except InvalidRequestError:
            if known is None:
                raise
            # The model may have been replaced by one of other tensors since.
            metadata = self._metadata[key] = await self.metadata(model, version)
            if metadata == known:
                raise
            result = await self._send(_infer_call(metadata, model, version, inputs, options))
        return result

    async def predict(
        self, inputs: Any, *, model: str | None = None, version: str | int | None = None, top_k: int | None = None
    ) -> PredictResult:
        """Ask the plain API; see ``Client.predict``."""
        result: PredictResult = await self._send(_predict_call(inputs, model, version, top_k))
        return result

    async def is_ready(self) -> bool:
        """Whether the server is ready."""
        try:
            await self._send(_Call("GET", "/v2/health/ready", _json))
        except ClientError:
            return False
        return True

    async def models(self) -> list[dict[str, Any]]:
        """The served models."""
        found: list[dict[str, Any]] = (await self._send(_Call("GET", "/models", _json)))["models"]
        return found

    async def stats(self, model: str | None = None) -> dict[str, Any]:
        """Parameter savings and live figures."""
        path = "/stats" if model is None else f"/models/{quote(model, safe='')}/stats"
        found: dict[str, Any] = await self._send(_Call("GET", path, _json))
        return found

    async def load(self, model: str) -> None:
        """Load a model again from the server's folder."""
        self._metadata.clear()
        await self._send(_Call("POST", f"/v2/repository/models/{quote(model, safe='')}/load", lambda _: None))

    async def unload(self, model: str) -> None:
        """Stop serving a model."""
        self._metadata.clear()
        await self._send(_Call("POST", f"/v2/repository/models/{quote(model, safe='')}/unload", lambda _: None))
