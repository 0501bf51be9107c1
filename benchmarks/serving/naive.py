"""A model behind a typical FastAPI handler with pydantic lists. NAIVE_HANDLER is def or async."""

import os

import numpy as np
import onnxruntime as ort
from fastapi import FastAPI
from pydantic import BaseModel

options = ort.SessionOptions()
options.intra_op_num_threads = 1
session = ort.InferenceSession(os.environ["MODEL"], options, providers=["CPUExecutionProvider"])
(name,) = [node.name for node in session.get_inputs()]
app = FastAPI()


class Body(BaseModel):
    inputs: list[list[float]]


if os.environ.get("NAIVE_HANDLER") == "async":

    @app.post("/predict")
    async def predict(body: Body):
        (logits,) = session.run(None, {name: np.array(body.inputs, dtype=np.float32)})
        return {"outputs": {"logits": logits.tolist()}}

else:

    @app.post("/predict")
    def predict(body: Body):
        (logits,) = session.run(None, {name: np.array(body.inputs, dtype=np.float32)})
        return {"outputs": {"logits": logits.tolist()}}
