"""The Python client: metadata, one request, concurrent requests, and errors.

python examples/ask.py                           a server on this machine, as 'make run' starts it
python examples/ask.py http://10.0.0.5:8000      another one; PANTHER_API_KEY where it asks for a key
"""

import asyncio
import json
import os
import sys
from pathlib import Path

import numpy as np

from panther_client import AsyncClient, Client, InvalidRequestError

DIGIT = Path(__file__).parent / "digit.json"


def one_after_the_other(url: str, key: str | None, rows: np.ndarray) -> None:
    """The blocking client."""
    with Client(url, api_key=key) as client:
        print("ready:", client.is_ready(), "models:", [model["name"] for model in client.models()])
        result = client.infer("digits", rows)  # binary tensors, by the Open Inference Protocol
        print("logits:", result["logits"].shape, result["logits"].dtype)
        print("labels:", client.predict(rows, model="digits", top_k=2).predictions[0])
        try:
            client.infer("digits", rows[:, :2])
        except InvalidRequestError as error:
            print("refused:", error)


async def many_at_once(url: str, key: str | None, rows: np.ndarray) -> None:
    """The asynchronous client; the server runs what arrives together as one batch."""
    async with AsyncClient(url, api_key=key) as client:
        results = await asyncio.gather(*(client.infer("digits", rows) for _ in range(50)))
    print("all the same:", all(np.allclose(result["logits"], results[0]["logits"], atol=1e-4) for result in results))


def main() -> None:
    """Ask a server."""
    url = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000"
    key = os.environ.get("PANTHER_API_KEY")
    rows = np.array(json.loads(DIGIT.read_text(encoding="utf-8"))["inputs"], np.float32)
    one_after_the_other(url, key, rows)
    asyncio.run(many_at_once(url, key, rows))


if __name__ == "__main__":
    main()
