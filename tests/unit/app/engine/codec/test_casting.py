import numpy as np
import pytest

from app.engine.codec.casting import cast, declared, is_castable
from app.errors import InvalidRequestError
from app.runtime.tensors import ELEMENTS, TensorSpec

DTYPES = dict(ELEMENTS.values())


def spec(datatype):
    return TensorSpec("x", datatype, DTYPES[datatype], (None, 2), (None, None))


@pytest.mark.parametrize(
    ("values", "given", "wanted"),
    [
        ([[1.5, -2.0]], "FP64", "FP32"),
        ([[5.0, -3.0]], "FP64", "INT32"),
        ([[5, 3]], "INT64", "FP32"),
        ([[1, 0]], "UINT8", "BOOL"),
        ([[True, False]], "BOOL", "FP32"),
        ([[np.nan, np.inf]], "FP64", "FP32"),
        ([[2**63, 1]], "UINT64", "UINT64"),
    ],
)
def test_numbers_are_cast_where_nothing_is_lost(values, given, wanted):
    array = np.array(values, DTYPES[given])
    found = cast(array, spec(wanted))
    assert found.dtype == DTYPES[wanted]
    np.testing.assert_array_equal(found.astype(np.float64), array.astype(np.float64))


@pytest.mark.parametrize(
    ("values", "given", "wanted", "message"),
    [
        ([[1, 5.5]], "FP64", "INT64", r"input 'x' holds 5.5 at \[0, 1\], beyond what INT64 can hold"),
        ([[1e39, 1]], "FP64", "FP32", r"holds 1e\+39 at \[0, 0\]"),
        ([[-1, 1]], "INT64", "UINT8", "holds -1 at"),
        ([[2**63, 1]], "UINT64", "INT64", "holds 9223372036854775808 at"),
        ([[1, 2]], "INT64", "BOOL", r"holds 2 at \[0, 1\]"),
        ([[np.nan, 1]], "FP64", "INT32", "holds nan at"),
    ],
)
def test_what_the_type_can_not_hold_is_refused(values, given, wanted, message):
    with pytest.raises(InvalidRequestError, match=message):
        cast(np.array(values, DTYPES[given]), spec(wanted))


def test_texts_and_bfloat16_are_not_cast():
    assert is_castable("FP64", spec("INT8"))
    for datatype in ("BYTES", "BF16"):
        assert not is_castable(datatype, spec("FP32"))
        assert not is_castable("FP32", spec(datatype))
    assert not is_castable("FP23", spec("FP32"))
    assert not is_castable(["FP32"][0] + "x", spec("FP32"))
    assert (declared(spec("FP32"), "INT16").datatype, declared(spec("FP32"), "INT16").dtype) == ("INT16", np.int16)
