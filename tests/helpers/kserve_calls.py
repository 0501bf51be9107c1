"""Calls of KServe's client, unmodified; runs in a separate environment, because its packages conflict.

    python kserve_calls.py URL

Prints as JSON the client's results for the models ``m`` (numbers) and ``texts``.
"""

import asyncio
import json
import sys

import numpy as np
from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig


async def calls(url: str) -> dict:
    client = InferenceRESTClient(RESTConfig(protocol="v2"))

    async def ask(
        model: str, name: str, array: np.ndarray, datatype: str, *, binary: bool, meant_for: str = ""
    ) -> list:
        tensor = InferInput(name, list(array.shape), datatype)
        tensor.set_data_from_numpy(array, binary_data=binary)
        answer = await client.infer(url, InferRequest(meant_for or model, [tensor]), model_name=model)
        return answer.outputs[0].as_numpy().tolist()

    rows = np.array([[1, 2, 3, 4, 5, 6], [0.5, 0, 0, 0, 0, 0]], np.float32)
    texts = np.array([["é", "b"], ["", "long " * 50]], object)
    found = {
        "live": await client.is_server_live(url),
        "ready": await client.is_server_ready(url),
        "model ready": await client.is_model_ready(url, "m"),
    }
    for binary in (False, True):
        found[f"numbers, binary {binary}"] = await ask("m", "x", rows, "FP32", binary=binary)
        answer = await ask("texts", "x", texts, "BYTES", binary=binary)
        found[f"texts, binary {binary}"] = [[str(text) for text in row] for row in answer]
    try:
        await ask("m", "x", rows, "FP32", binary=False, meant_for="other")
    except Exception as error:  # noqa: BLE001 - any error of the client
        found["meant for another"] = str(error)
    return found


if __name__ == "__main__":
    print(json.dumps(asyncio.run(calls(sys.argv[1]))))
