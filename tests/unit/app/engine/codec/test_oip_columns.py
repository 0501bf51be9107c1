from types import SimpleNamespace

import pytest
from helpers.tables import FLOWERS

from app.engine.codec.oip_columns import read_columns
from app.errors import InvalidRequestError

MODEL = SimpleNamespace(name="flowers")


def column(name, data, shape=None, datatype="FP64"):
    return {"name": name, "datatype": datatype, "shape": shape or [len(data), 1], "data": data}


COLUMNS = [
    column("colour", ["blue", "red"], datatype="BYTES"),
    column("length", [1.5, 2]),
    column("whole", [[3.0], [4]], [2, 1], "INT64"),
]


def read(columns, table=FLOWERS):
    return read_columns(MODEL, table, {"inputs": columns}, nan=False)


def test_columns_become_the_input():
    assert read(COLUMNS)["x"].tolist() == [[1.5, 3, 1], [2, 4, 0]]
    flat = [{**item, "shape": [2]} for item in COLUMNS]
    assert read(flat)["x"].tolist() == [[1.5, 3, 1], [2, 4, 0]]


@pytest.mark.parametrize(
    ("columns", "table", "message"),
    [
        (COLUMNS, None, "content_type 'pd', but model 'flowers' has no column names"),
        (COLUMNS[:2], FLOWERS, "'inputs' lacks the column 'whole'"),
        ([*COLUMNS, column("more", [1, 2])], FLOWERS, "'inputs' has an unknown column 'more'"),
        ("none", FLOWERS, "'inputs' is the string 'none'; expected a list with an object per column"),
        ([1, 2, 3], FLOWERS, "'inputs' is a list; expected a list with an object per column"),
        ([*COLUMNS[:2], {**COLUMNS[2], "data": 3}], FLOWERS, "column 'whole': 'data' is 3; expected a list"),
        ([*COLUMNS[:2], {**COLUMNS[2], "shape": [3]}], FLOWERS, r"the shape \[3\] and 2 values; expected \[2, 1\]"),
        ([*COLUMNS[:2], column("whole", [1.5, 2])], FLOWERS, r"inputs.whole.data\[0\] is 1.5; expected a whole number"),
    ],
)
def test_what_is_wrong_is_named(columns, table, message):
    with pytest.raises(InvalidRequestError, match=message):
        read(columns, table)
