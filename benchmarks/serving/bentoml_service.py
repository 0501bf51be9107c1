"""BentoML with numpy input, served by `bentoml serve` of a separate environment."""

import os

import bentoml
import numpy as np
import onnxruntime as ort


@bentoml.service(workers=1)
class Digits:
    def __init__(self):
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = ort.InferenceSession(os.environ["MODEL"], options, providers=["CPUExecutionProvider"])
        self.name = self.session.get_inputs()[0].name

    @bentoml.api
    def predict(self, inputs: np.ndarray) -> np.ndarray:
        return self.session.run(None, {self.name: np.asarray(inputs, np.float32)})[0]
