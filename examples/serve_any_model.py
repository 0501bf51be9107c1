"""Serve any ONNX file, here one that torch.onnx wrote of a plain convolutional network.

    python examples/serve_any_model.py        a few seconds; starts a server, asks it, stops it

The file goes to NAME/VERSION/model.onnx. Without our card, /stats says what can be said of it, and ``null`` elsewhere.
"""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import numpy as np
import torch
from torch import nn

from panther_client import Client


def write_model(folder: Path, network: nn.Module, images: torch.Tensor) -> None:
    """Export by torch alone."""
    path = folder / "edges" / "1" / "model.onnx"
    path.parent.mkdir(parents=True, exist_ok=True)
    batch = torch.export.Dim("batch")
    torch.onnx.export(
        network,
        (images,),
        path,
        input_names=["image"],
        output_names=["scores"],
        dynamic_shapes=({0: batch},),
        dynamo=True,
        external_data=False,
        verbose=False,
    )


def start_server(folder: Path) -> tuple[subprocess.Popen[bytes], str]:
    """``panther serve`` on a free port, once it is ready."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    command = [sys.executable, "-m", "app", "--model-dir", str(folder), "--port", str(port)]
    server = subprocess.Popen(command, env={**os.environ, "ORT_DISABLE_TELEMETRY": "1"})
    url = f"http://127.0.0.1:{port}"
    for _ in range(300):
        if server.poll() is not None:
            raise SystemExit("the server ended; see above")
        try:
            if httpx.get(f"{url}/health/ready").status_code == 200:
                return server, url
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    server.terminate()
    raise SystemExit("the server was not ready after 30 seconds")


def main() -> None:
    """Export, serve, compare with torch."""
    torch.manual_seed(0)
    torch.set_num_threads(1)  # small products: a second thread would mostly wait
    network = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(64, 3)
    ).eval()
    images = torch.rand(8, 1, 16, 16)
    folder = Path("any-models")
    write_model(folder, network, images)
    server, url = start_server(folder)
    try:
        with Client(url) as client:
            scores = client.infer("edges", images.numpy())["scores"]
        with torch.no_grad():
            expected = network(images).numpy()
        print("largest difference to torch:", f"{np.abs(scores - expected).max():.1e}")
        (stats,) = httpx.get(f"{url}/models/edges/stats").json()["models"]
        print("has a card:", stats["has_card"], "| bytes on disk:", stats["bytes"]["file_bytes"])
        print("bytes of a dense twin:", stats["bytes"]["dense_twin_weight_bytes"])
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    main()
