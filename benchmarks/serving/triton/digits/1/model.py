"""Triton's Python backend on onnxruntime: the requests of a batch in one run. Loaded by Triton's own stub."""

import os

import numpy as np
import onnxruntime as ort
import triton_python_backend_utils as pb


class TritonPythonModel:
    def initialize(self, args):  # noqa: ARG002
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = ort.InferenceSession(os.environ["MODEL"], options, providers=["CPUExecutionProvider"])
        self.input = self.session.get_inputs()[0].name

    def execute(self, requests):
        rows = [pb.get_input_tensor_by_name(request, "x").as_numpy() for request in requests]
        x = rows[0] if len(rows) == 1 else np.concatenate(rows)
        (logits,) = self.session.run(None, {self.input: x})
        answers, first = [], 0
        for each in rows:
            part = logits[first : first + len(each)]
            first += len(each)
            answers.append(pb.InferenceResponse([pb.Tensor("logits", part)]))
        return answers
