"""A Python client for the server, and for any other Open Inference Protocol v2 server, over HTTP or gRPC.

It requires numpy, and httpx for HTTP (extra ``client``) or grpcio and protobuf for gRPC (extra ``client-grpc``).

>>> import numpy as np
>>> from panther_client import Client
>>> with Client("http://127.0.0.1:8000") as client:  # doctest: +SKIP
...     result = client.infer("digits", np.zeros((2, 784), np.float32))
...     result["logits"].shape
(2, 10)
"""

from panther_client.client import AsyncClient, Client, Retries
from panther_client.errors import (
    AccessDeniedError,
    ClientError,
    ConnectionFailedError,
    DeadlineExceededError,
    InvalidRequestError,
    MissingExtraError,
    NotFoundError,
    OverloadedError,
    ServerError,
)
from panther_client.wire import InferResult, Prediction, PredictResult

__version__ = "0.1.0"
__all__ = [
    "AccessDeniedError",
    "AsyncClient",
    "Client",
    "ClientError",
    "ConnectionFailedError",
    "DeadlineExceededError",
    "InferResult",
    "InvalidRequestError",
    "MissingExtraError",
    "NotFoundError",
    "OverloadedError",
    "PredictResult",
    "Prediction",
    "Retries",
    "ServerError",
]
