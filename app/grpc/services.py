"""Table of all gRPC methods by path, and the access log: common to both transports."""

import logging
from functools import partial

import grpc

from app.engine.codec import HeaderList, Headers
from app.errors import AppError, InternalError, status_of
from app.grpc.call import Method, Outcome, Refused, Unary
from app.grpc.health import HEALTH_NAME, Health
from app.grpc.inference import Inference
from app.grpc.messages import SERVICE_NAME, methods, parse
from app.grpc.methods import Method as Described
from app.grpc.methods import served_methods
from app.grpc.reflection import REFLECTION_NAME, Reflection
from app.grpc.status import StatusError
from app.service.state import AppState
from app.telemetry.logs import about, log_request, request_id_of_task

log = logging.getLogger(__name__)


class Services:
    """The services of the port: inference, health and reflection.

    Args:
        state: State of the application.

    Attributes:
        state: State of the application.
        inference: The method ``ModelInfer``.
        methods: All methods by path.
        access_log: Whether calls are logged.
    """

    def __init__(self, state: AppState) -> None:
        self.state = state
        self.inference = Inference(state.service)
        self.access_log = state.service.access_log
        health = Health(state.not_ready_because, lambda: state.draining)
        own: dict[str, Method] = {name: _unserved(name) for name in methods()}
        own |= {name: Unary(partial(self._answer, method)) for name, method in served_methods().items()}
        own["ModelInfer"] = self.inference
        services = {
            SERVICE_NAME: own,
            HEALTH_NAME: health.methods(),
            REFLECTION_NAME: Reflection((SERVICE_NAME, HEALTH_NAME)).methods(),
        }
        self.methods = {
            f"/{service}/{name}": each for service, found in services.items() for name, each in found.items()
        }

    def log(self, path: str, outcome: Outcome, seconds: float, client: str | None) -> None:
        """Write a line to the access log for an answered call of the protocol.

        Args:
            path: Path of the method.
            outcome: Outcome of the call.
            seconds: Time from the headers to the response.
            client: Address of the peer.
        """
        error, headers, _ = outcome
        request_id = dict(headers).get(b"x-request-id")
        if request_id is not None:  # health checks and methods that are not served have none
            status = 200 if error is None else status_of(error)
            log_request("GRPC", path.encode(), status, seconds, request_id, client)

    async def _answer(self, method: Described, message: bytes | None, headers: Headers) -> Outcome:
        service = self.state.service
        request_id = service.request_ids.of(headers)
        request_id_of_task.set(request_id.decode())
        with_id: HeaderList = [(b"x-request-id", request_id)]
        try:
            if service.access is not None:
                service.access.check(*method.same_as, headers)
            answer = await method(self.state, parse(method.request, message or b""))
            return None, with_id, answer.SerializeToString()
        except AppError as error:
            return error, with_id, b""
        except Exception as error:
            log.error("a gRPC call failed", exc_info=error, extra=about(request_id))
            return InternalError(), with_id, b""


def _unserved(name: str) -> Refused:
    why = f"{name} is not served; docs/grpc.md lists the served methods"
    if name == "ModelStreamInfer":
        why = "ModelStreamInfer is not served: each request has one response; call ModelInfer"
    return Refused(StatusError(grpc.StatusCode.UNIMPLEMENTED, why))
