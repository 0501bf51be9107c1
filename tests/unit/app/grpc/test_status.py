"""Every error has a status code, and its message and headers travel as gRPC allows."""

import grpc
import pytest

from app import errors
from app.errors import AppError, BenchmarkError, InvalidRequestError, ModelUnavailableError, OverloadedError
from app.grpc.status import code_of, details_of, headers_of, trailing

CODES = {
    "InvalidRequestError": "INVALID_ARGUMENT",
    "UnauthorizedError": "UNAUTHENTICATED",
    "AccessForbiddenError": "PERMISSION_DENIED",
    "ControlForbiddenError": "PERMISSION_DENIED",
    "ModelNotFoundError": "NOT_FOUND",
    "BodyTooLargeError": "RESOURCE_EXHAUSTED",
    "OverloadedError": "RESOURCE_EXHAUSTED",
    "ModelUnavailableError": "UNAVAILABLE",
    "DeviceError": "UNAVAILABLE",
    "DeadlineExceededError": "DEADLINE_EXCEEDED",
    "InferenceFailedError": "INTERNAL",
    "LoadError": "INTERNAL",
    "LoadTimeoutError": "INTERNAL",
}


@pytest.mark.parametrize("name", CODES)
def test_codes(name):
    assert code_of(getattr(errors, name)("why")).name == CODES[name]


def test_a_defect_of_the_server_is_internal():
    assert code_of(errors.InternalError()) is grpc.StatusCode.INTERNAL
    assert details_of(errors.InternalError()) == "internal error"


def test_the_nearest_base_in_the_table_counts():
    class Finer(InvalidRequestError):
        pass

    assert code_of(Finer("why")) is grpc.StatusCode.INVALID_ARGUMENT
    assert code_of(AppError("why")) is grpc.StatusCode.INTERNAL
    assert errors.status_of(BenchmarkError("why")) == 400  # which gRPC has no method for


def test_a_long_message_is_cut():
    assert details_of(InvalidRequestError("é" * 5000)) == "é" * 2000 + "… (5000 characters)"


def test_when_to_try_again_goes_with_the_error():
    headers = [(b"x-request-id", b"a")]
    assert trailing(headers) == (("x-request-id", "a"),)
    assert trailing(headers, InvalidRequestError("why")) == (("x-request-id", "a"),)
    again = (("x-request-id", "a"), ("retry-after", "3"), ("grpc-retry-pushback-ms", "3000"))
    assert trailing(headers, OverloadedError("why", wait_s=3)) == again
    assert dict(trailing([], ModelUnavailableError("why")))["retry-after"] == "1"


def test_only_what_has_a_meaning_is_read_of_metadata():
    metadata = (("authorization", "Bearer é"), ("x-request-id", "1"), ("user-agent", "a"), ("x-api-key", b"binary"))
    assert headers_of(metadata) == {b"authorization": "Bearer é".encode(), b"x-request-id": b"1"}
    assert headers_of(None) == {}
