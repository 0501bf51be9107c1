"""gRPC calls of KServe's client and of NVIDIA's, unmodified; runs in a separate environment.

    python grpc_calls.py kserve|triton ADDRESS

Prints as JSON the clients' results for the models ``m`` (numbers) and ``texts``.
"""

import asyncio
import json
import sys

import numpy as np

ROWS = np.array([[1, 2, 3, 4, 5, 6], [0.5, 0, 0, 0, 0, 0]], np.float32)
TEXTS = np.array([["é", "b"], ["", "long " * 50]], object)


def readable(array: np.ndarray) -> list:
    return [[each.decode() if isinstance(each, bytes) else each for each in row] for row in array.tolist()]


async def kserve(address: str) -> dict:
    from kserve import InferenceGRPCClient, InferInput, InferRequest

    client = InferenceGRPCClient(address)

    async def ask(model: str, array: np.ndarray, datatype: str) -> list:
        tensor = InferInput("x", list(array.shape), datatype)
        tensor.set_data_from_numpy(array, binary_data=False)
        answer = await client.infer(InferRequest(model, [tensor]))
        return readable(answer.outputs[0].as_numpy())

    found = {
        "live": await client.is_server_live(),
        "ready": await client.is_server_ready(),
        "model ready": await client.is_model_ready("m"),
        "numbers": await ask("m", ROWS, "FP32"),
        "texts": await ask("texts", TEXTS, "BYTES"),
    }
    try:
        await ask("m", ROWS[:, :5], "FP32")
    except Exception as error:  # noqa: BLE001 - any error of the client
        found["wrong shape"] = str(error)
    await client.close()
    return found


def triton(address: str) -> dict:
    import tritonclient.grpc as client

    def ask(model: str, array: np.ndarray, datatype: str) -> list:
        tensor = client.InferInput("x", list(array.shape), datatype)
        tensor.set_data_from_numpy(array)
        return readable(server.infer(model, [tensor]).as_numpy("y"))

    with client.InferenceServerClient(address) as server:
        found = {
            "live": server.is_server_live(),
            "ready": server.is_server_ready(),
            "model ready": server.is_model_ready("m"),
            "numbers": ask("m", ROWS, "FP32"),
            "texts": ask("texts", TEXTS, "BYTES"),
        }
        try:
            ask("m", ROWS[:, :5], "FP32")
        except client.InferenceServerException as error:
            found["wrong shape"] = str(error)
    return found


if __name__ == "__main__":
    found = asyncio.run(kserve(sys.argv[2])) if sys.argv[1] == "kserve" else triton(sys.argv[2])
    print(json.dumps(found))
