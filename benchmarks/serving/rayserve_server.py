"""Ray Serve with one replica. Run by the interpreter of its own environment."""

import os
import time

import numpy as np
import onnxruntime as ort
import ray
from ray import serve
from starlette.requests import Request


@serve.deployment(num_replicas=1, max_ongoing_requests=64)
class Digits:
    def __init__(self):
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = ort.InferenceSession(os.environ["MODEL"], options, providers=["CPUExecutionProvider"])
        self.name = self.session.get_inputs()[0].name

    async def __call__(self, request: Request):
        x = np.array((await request.json())["inputs"], dtype=np.float32)
        return {"outputs": {"logits": self.session.run(None, {self.name: x})[0].tolist()}}


if __name__ == "__main__":
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
    serve.start(http_options={"host": "127.0.0.1", "port": int(os.environ["PORT"])})
    serve.run(Digits.bind(), route_prefix="/predict")
    while True:
        time.sleep(1)
