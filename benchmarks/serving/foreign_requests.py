"""Requests to models of other tools, the server's answers to them, and those of onnxruntime alone."""

import json
from dataclasses import dataclass

import numpy as np
import onnxruntime as ort

RTOL, ATOL_OF_LARGEST = 1e-4, 1e-5
DATATYPES = {np.dtype(np.float32): "FP32", np.dtype(np.int64): "INT64", np.dtype(np.int32): "INT32",
             np.dtype(object): "BYTES"}  # fmt: skip
DTYPES = {name: dtype for dtype, name in DATATYPES.items()} | {"FP64": np.dtype(np.float64)}
JSON = {"Content-Type": "application/json"}


@dataclass
class Request:
    """One request, the answer of onnxruntime alone, and what the server answered."""

    model: str
    path: str
    headers: dict
    body: bytes
    expected: dict
    status: int = 0
    answer: tuple = ()


def as_json(model, feeds):
    body = {"inputs": {name: array.tolist() for name, array in feeds.items()}}
    return f"/models/{model}/predict", JSON, json.dumps(body).encode()


def as_binary(model, feeds):
    """The binary tensors of the Open Inference Protocol."""
    items, parts = [], []
    for name, array in feeds.items():
        if array.dtype == object:
            texts = [text.encode() for text in array.ravel()]
            part = b"".join(len(text).to_bytes(4, "little") + text for text in texts)
        else:
            part = array.tobytes()
        parameters = {"binary_data_size": len(part)}
        items.append({"name": name, "shape": list(array.shape), "datatype": DATATYPES[array.dtype],
                      "parameters": parameters})  # fmt: skip
        parts.append(part)
    header = json.dumps({"inputs": items, "parameters": {"binary_data_output": True}}).encode()
    headers = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(len(header))}
    return f"/v2/models/{model}/infer", headers, header + b"".join(parts)


def read_answer(headers, body):
    """The outputs of an answer of either kind."""
    length = int(headers.get("Inference-Header-Content-Length", 0))
    if not length:
        return {name: np.array(values) for name, values in json.loads(body)["outputs"].items()}
    found, offset = {}, length
    for item in json.loads(body[:length])["outputs"]:
        size = item["parameters"]["binary_data_size"]
        part, offset = body[offset : offset + size], offset + size
        if item["datatype"] == "BYTES":
            array = np.array(texts_of(part))
        else:
            array = np.frombuffer(part, DTYPES[item["datatype"]])
        found[item["name"]] = array.reshape(item["shape"])
    return found


def texts_of(part):
    found, offset = [], 0
    while offset < len(part):
        size = int.from_bytes(part[offset : offset + 4], "little")
        found.append(part[offset + 4 : offset + 4 + size].decode())
        offset += 4 + size
    return found


def alone(session, feeds):
    """What onnxruntime answers; a sequence of maps as a matrix with a column for each class."""
    outputs = zip(session.get_outputs(), session.run(None, feeds), strict=True)
    return {
        spec.name: np.array([list(item.values()) for item in value]) if isinstance(value, list) else value
        for spec, value in outputs
    }


def open_alone(path):
    """A session of onnxruntime on a file, as it is or, where this machine lacks a locale, with one that is there."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    try:
        return ort.InferenceSession(path, options)
    except Exception as error:
        if "Failed to construct locale" not in str(error):
            raise
    import onnx

    model = onnx.load(path)
    for node in model.graph.node:
        if node.op_type == "StringNormalizer":
            node.attribute.append(onnx.helper.make_attribute("locale", "C.UTF-8"))
    return ort.InferenceSession(model.SerializeToString(), options)


def error_of(found, expected):
    """The largest difference, relative to the largest number of the output; None where the answer is wrong."""
    if found.keys() != expected.keys():
        return None
    largest = 0.0
    for name, want in expected.items():
        have = found[name]
        if have.shape != want.shape:
            return None
        if want.dtype.kind != "f":
            if not np.array_equal(have, want):
                return None
            continue
        scale = max(float(np.abs(want).max(initial=0)), 1e-30)
        if not np.allclose(have, want, rtol=RTOL, atol=ATOL_OF_LARGEST * scale):
            return None
        largest = max(largest, float(np.abs(have - want).max(initial=0)) / scale)
    return largest
