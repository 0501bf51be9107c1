"""A floor that answers: bare uvicorn, simdjson, `session.run` and orjson, without checks, queue, batches or counters.

It trusts the request: rows of 784 numbers as `{"inputs": …}` at /predict, or float32 as they are at any other path.
"""

import os

import numpy as np
import onnxruntime as ort
import orjson
import simdjson

options = ort.SessionOptions()
options.intra_op_num_threads = 1
session = ort.InferenceSession(os.environ["MODEL"], options, providers=["CPUExecutionProvider"])
(name,) = [node.name for node in session.get_inputs()]
parser = simdjson.Parser()


def predict(body):
    numbers = np.frombuffer(parser.parse(body)["inputs"].as_buffer(of_type="d"), np.float64)
    (logits,) = session.run(None, {name: numbers.astype(np.float32).reshape(-1, 784)})
    return b'{"outputs":{"logits":' + orjson.dumps(logits, option=orjson.OPT_SERIALIZE_NUMPY) + b"}}"


def predict_binary(body):
    return session.run(None, {name: np.frombuffer(body, np.float32).reshape(-1, 784)})[0].tobytes()


async def app(scope, receive, send):
    if scope["type"] != "http":
        return
    pieces, more = [], True
    while more:
        message = await receive()
        pieces.append(message["body"])
        more = message.get("more_body")
    plain = scope["path"] == "/predict"
    answer = (predict if plain else predict_binary)(b"".join(pieces))
    kind = b"application/json" if plain else b"application/octet-stream"
    headers = [(b"content-type", kind), (b"content-length", b"%d" % len(answer))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": answer})
