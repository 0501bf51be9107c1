"""Shared by the tests on a real GPU: the bundled model, and its results on the CPU."""

from pathlib import Path

import numpy as np
import onnxruntime as ort

ROOT = Path(__file__).parents[2]
DIGITS = sorted(ROOT.glob("models/digits/*/model.onnx"))[-1]


def on_cpu(path, feeds):
    return ort.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, feeds)


def close(mine, expected, limit=1e-5):
    assert np.abs(mine - expected).max() <= limit * np.abs(expected).max()
