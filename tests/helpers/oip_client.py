"""The public client of the Open Inference Protocol, unmodified."""

from typing import Any

import httpx
import pytest

tritonclient: Any = pytest.importorskip("tritonclient.http")
InferenceServerException = tritonclient.InferenceServerException


def triton(client: httpx.Client) -> Any:
    """The public client for the server of ``client``."""
    return tritonclient.InferenceServerClient(client.base_url.netloc.decode())
