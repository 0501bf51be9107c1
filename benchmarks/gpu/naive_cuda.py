"""A model behind a typical FastAPI handler with onnxruntime on CUDA; MODEL is the file.

POST /predict takes pydantic lists, POST /binary raw float32.
"""

import os

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import numpy as np
import onnxruntime as ort
from fastapi import FastAPI, Request, Response
from pydantic import BaseModel

getattr(ort, "preload_dlls", lambda: None)()
# TF32 is off, as it is on the other side.
session = ort.InferenceSession(os.environ["MODEL"], providers=[("CUDAExecutionProvider", {"use_tf32": "0"})])
(node,) = session.get_inputs()
width = node.shape[1]
app = FastAPI()


class Body(BaseModel):
    inputs: list[list[float]]


@app.post("/predict")
def answer_lists(body: Body):
    (y,) = session.run(None, {node.name: np.array(body.inputs, dtype=np.float32)})
    return {"outputs": y.tolist()}


@app.post("/binary")
async def answer_binary(request: Request):
    x = np.frombuffer(await request.body(), np.float32).reshape(-1, width)
    (y,) = session.run(None, {node.name: x})
    return Response(y.tobytes(), media_type="application/octet-stream")
