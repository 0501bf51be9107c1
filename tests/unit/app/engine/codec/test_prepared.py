from types import SimpleNamespace

import numpy as np
import pytest
from helpers.batching import BATCHED, UNBATCHED

from app.engine.codec.prepared import prepare
from app.errors import InvalidRequestError
from app.runtime.signature import Signature
from app.runtime.tensors import TensorSpec


def model(batched=True, takes_empty=True):
    named = [TensorSpec(name, "FP32", np.dtype(np.float32), (None, None), ("batch", None)) for name in "ab"]
    return SimpleNamespace(
        signature=Signature(named, []),
        batching=BATCHED if batched else UNBATCHED,
        takes_empty=takes_empty,
        takes_no_rows=False,
    )


def test_inputs_in_another_order_are_of_another_shape_all_the_same():
    def key(**feeds):
        return prepare(model(), {name: np.zeros((1, width)) for name, width in feeds.items()}, ("y",)).key

    assert key(a=2, b=3) == key(b=3, a=2)
    assert key(a=2, b=3) != key(b=2, a=3)
    with pytest.raises(InvalidRequestError, match="input 'b' has 2 rows and input 'a' has 1"):
        prepare(model(), {"b": np.zeros((2, 1)), "a": np.zeros((1, 1))}, ("y",))


def test_priority_and_timeout_are_part_of_the_request():
    feeds = {name: np.zeros((3, 1), np.float32) for name in "ab"}
    request = prepare(model(), feeds, ("y",), 2, 500)
    assert (request.rows, request.priority, request.timeout_us, request.nbytes) == (3, 2, 500, 24)
    alone = prepare(model(batched=False), feeds, ("y",), 2, 500)
    assert (alone.rows, alone.key, alone.priority, alone.timeout_us) == (1, None, 2, 500)


def test_empty_inputs_are_refused_where_the_model_can_not_take_them():
    feeds = {"a": np.zeros((0, 1)), "b": np.zeros((0, 1))}
    with pytest.raises(InvalidRequestError, match=r"input 'a' has the empty shape \[0, 1\]; this model"):
        prepare(model(takes_empty=False), feeds, ("y",))
    with pytest.raises(InvalidRequestError, match="the inputs have no rows; at least 1 is required"):
        prepare(model(), feeds, ("y",))
