"""Typed contents to tensors and back, and what is refused."""

import numpy as np
import pytest

from app.errors import InvalidRequestError
from app.grpc.messages import InferTensorContents
from app.grpc.typed_contents import FIELDS, array_of, contents_of
from app.runtime.tensors import ELEMENTS, TensorSpec

SPECS = {
    datatype: TensorSpec("x", datatype, dtype, (None, 2), ("n", None)) for datatype, dtype in ELEMENTS.values()
}  # fmt: skip


def values(datatype):
    dtype = SPECS[datatype].dtype
    if datatype == "BYTES":
        return ["é", "", "b", "long " * 50]
    if datatype == "BOOL":
        return [True, False, False, True]
    if dtype.kind in "iu":
        return [np.iinfo(dtype).min, np.iinfo(dtype).max, 1, 0]
    return [0.5, -1.0, float("inf"), 1e-30]


@pytest.mark.parametrize("datatype", FIELDS)
def test_there_and_back(datatype):
    spec, given = SPECS[datatype], np.array(values(datatype), SPECS[datatype].dtype).reshape(2, 2)
    contents = contents_of(given, datatype)
    assert [field.name for field, _ in contents.ListFields()] == [FIELDS[datatype]]
    found = array_of(contents, spec, (2, 2))
    assert found.dtype == spec.dtype
    np.testing.assert_array_equal(found, given)


def test_all_datatypes_but_the_two_halves_have_a_field():
    assert set(SPECS) - set(FIELDS) == {"FP16", "BF16"}


@pytest.mark.parametrize("datatype", ["FP16", "BF16"])
def test_halves_have_none(datatype):
    with pytest.raises(InvalidRequestError, match=f"'x' is {datatype}, which must be sent in raw_input_contents"):
        array_of(InferTensorContents(fp32_contents=[1, 2]), SPECS[datatype], (1, 2))


@pytest.mark.parametrize(
    ("datatype", "contents", "message"),
    [
        ("FP32", {"fp32_contents": [1]}, r"has 1 values in fp32_contents; shape \[1, 2\] needs 2"),
        ("FP32", {}, r"has 0 values in fp32_contents; shape \[1, 2\] needs 2"),
        ("FP32", {"fp64_contents": [1, 2]}, "has 2 values in fp64_contents; expected FP32 in fp32_contents"),
        ("FP32", {"fp32_contents": [1, 2], "int_contents": [1]}, "has 1 values in int_contents"),
        ("INT8", {"int_contents": [0, -129]}, r"int_contents\[1\] is -129; expected an integer from -128 to 127"),
        ("UINT8", {"uint_contents": [256, 0]}, r"uint_contents\[0\] is 256; expected an integer from 0 to 255"),
        ("INT16", {"int_contents": [0, 1 << 15]}, r"is 32768; expected an integer from -32768 to 32767"),
        ("UINT16", {"uint_contents": [0, 1 << 16]}, r"is 65536; expected an integer from 0 to 65535"),
        ("BYTES", {"bytes_contents": [b"a", b"\xff"]}, "holds a string that is not valid UTF-8"),
    ],
)
def test_what_does_not_fit_is_refused(datatype, contents, message):
    with pytest.raises(InvalidRequestError, match=message):
        array_of(InferTensorContents(**contents), SPECS[datatype], (1, 2))


def test_tensors_without_elements():
    assert array_of(InferTensorContents(), SPECS["FP32"], (0, 2)).shape == (0, 2)
    assert not contents_of(np.empty((0, 2), np.float32), "FP32").ListFields()
