from types import SimpleNamespace

import numpy as np
import pytest
from helpers.tables import FLOWERS, spec

from app.engine.codec.table import table_of
from app.errors import InvalidRequestError
from app.runtime.card import Column


def model(inputs, columns=None):
    return SimpleNamespace(name="m", inputs=tuple(inputs), columns=columns)


def place(name, row):
    return f"{name}@{row}"


def test_columns_of_the_card_become_one_input_in_its_order():
    values = {"colour": ["blue", "red"], "whole": [2.0, 3], "length": [5.5, 4]}
    (array,) = FLOWERS.feeds(values, place, nan=False).values()
    assert array.dtype == np.float32
    np.testing.assert_array_equal(array, np.array([[5.5, 2, 1], [4, 3, 0]], np.float32))


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("length", "long", r"length@1 is the string 'long'; expected a number"),
        ("length", None, r"length@1 is null; expected a number"),
        ("length", True, r"length@1 is true; expected a number"),
        ("length", 1e39, r"length@1 is 1e\+39, beyond what FP32 can hold"),
        ("whole", 2.5, r"whole@1 is 2.5; expected a whole number"),
        ("colour", "green", r"colour@1 is the string 'green'; expected one of: red, blue"),
        ("colour", 0, r"colour@1 is 0; expected one of: red, blue"),
    ],
)
def test_a_value_of_another_kind_is_named_with_its_place(column, value, message):
    values = {"length": [1, 1], "whole": [1, 1], "colour": ["red", "red"]}
    values[column][1] = value
    with pytest.raises(InvalidRequestError, match=message):
        FLOWERS.feeds(values, place, nan=False)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["length", "whole"], "here lacks the column 'colour'; the columns are: length, whole, colour"),
        (["length", "whole", "colour", "extra"], "here has an unknown column 'extra'"),
        (["length", "whole", "colour", "whole"], "here has the column 'whole' twice"),
        (["length", 3, "colour"], "here has an unknown column 3"),
        ([], r"here lacks the column 'length'.*\(3 are missing\)"),
    ],
)
def test_names_are_checked(given, message):
    with pytest.raises(InvalidRequestError, match=message):
        FLOWERS.check(given, "here")
    FLOWERS.check(["colour", "length", "whole"], "here")


def test_columns_of_different_lengths_are_refused():
    with pytest.raises(InvalidRequestError, match="column 'whole' has 1 values and column 'length' has 2"):
        FLOWERS.feeds({"length": [1, 2], "whole": [1], "colour": ["red", "red"]}, place, nan=False)


def test_where_each_input_is_a_column_no_card_is_needed():
    table = table_of(
        model(
            [
                spec("age", "INT64", (None, 1)),
                spec("name", "BYTES", (None,)),
                spec("member", "BOOL", (None, 1)),
            ]
        )
    )
    feeds = table.feeds({"age": [40.0, 41], "name": ["a", "b"], "member": [True, False]}, place, nan=False)
    assert {name: (array.shape, array.dtype.kind) for name, array in feeds.items()} == {
        "age": ((2, 1), "i"),
        "name": ((2,), "O"),
        "member": ((2, 1), "b"),
    }
    with pytest.raises(InvalidRequestError, match=r"age@0 is 40\.5; expected a whole number"):
        table.feeds({"age": [40.5], "name": ["a"], "member": [True]}, place, nan=False)


def test_which_models_take_tables():
    assert table_of(model([spec()])) is None
    assert table_of(model([spec(shape=(None, 1)), spec("y", shape=(None, 2))])) is None
    assert table_of(model([])) is None
    described = [Column(name="a"), Column(name="b", type="boolean"), Column(name="c")]
    table = table_of(model([spec()], described))
    (array,) = table.feeds({"a": [1], "b": [True], "c": [3]}, place, nan=False).values()
    assert array.tolist() == [[1, 1, 3]]
    with pytest.raises(InvalidRequestError, match="b@0 is 1; expected true or false"):
        table.feeds({"a": [1], "b": [1], "c": [3]}, place, nan=False)


def test_nan_is_taken_where_it_is_allowed():
    values = {"length": [None], "whole": [1], "colour": ["red"]}
    (array,) = FLOWERS.feeds(values, place, nan=True).values()
    assert np.isnan(array[0, 0])
