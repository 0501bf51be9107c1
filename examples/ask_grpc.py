"""The same client over gRPC and over HTTP: the URL chooses. Deadlines, retries, and the cost of each protocol.

python examples/ask_grpc.py                                                 a server with PANTHER_GRPC_PORT=8001
python examples/ask_grpc.py grpc://10.0.0.5:8001 http://10.0.0.5:8000       another one
"""

import asyncio
import json
import sys
import time
from pathlib import Path

import numpy as np

from panther_client import AsyncClient, Client, ClientError, DeadlineExceededError, Retries

DIGIT = Path(__file__).parent / "digit.json"
ROUNDS = 50


def ask(url: str, rows: np.ndarray) -> np.ndarray:
    """One request after the other, each in at most 5 seconds with all its retries."""
    with Client(url, timeout_s=5, retries=Retries(count=5, max_wait_s=1)) as client:
        names = [spec["name"] for spec in client.metadata("digits")["inputs"]]
        began = time.perf_counter()
        for _ in range(ROUNDS):
            result = client.infer("digits", {names[0]: rows})
        took_ms = 1000 * (time.perf_counter() - began) / ROUNDS
        print(f"{url.partition(':')[0]}: ready {client.is_ready()}, inputs {names}, {took_ms:.2f} ms a request")
        try:
            client.infer("digits", rows, timeout_us=1)
        except DeadlineExceededError as error:
            print("too late:", error)
        try:
            client.infer("no-such-model", rows)
        except ClientError as error:
            print(f"{type(error).__name__} ({error.status}): {error}")
    return result["logits"]


async def ask_many(url: str, rows: np.ndarray) -> list[np.ndarray]:
    """Requests that are in flight together, which the server runs as batches."""
    async with AsyncClient(url) as client:
        results = await asyncio.gather(*(client.infer("digits", rows) for _ in range(ROUNDS)))
    return [result["logits"] for result in results]


def main() -> None:
    """Ask over both protocols, and compare."""
    urls = sys.argv[1:] or ["grpc://127.0.0.1:8001", "http://127.0.0.1:8000"]
    rows = np.array(json.loads(DIGIT.read_text(encoding="utf-8"))["inputs"], np.float32)
    answers = [ask(url, rows) for url in urls]
    for url in urls:
        answers += asyncio.run(ask_many(url, rows))
    print("all the same:", all(np.allclose(answer, answers[0], atol=1e-4) for answer in answers))


if __name__ == "__main__":
    main()
