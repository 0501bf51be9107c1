import contextlib
import csv
import io
from types import SimpleNamespace

import numpy as np
import pytest
from helpers.tables import FLOWERS, spec
from hypothesis import given
from hypothesis import strategies as st

from app.engine.codec.csv_form import CsvResponse, read_csv
from app.engine.codec.table import Table, TableColumn
from app.engine.results import InferenceResult
from app.errors import AppError, InvalidRequestError

NUMBERS = SimpleNamespace(name="m", inputs=(spec(),))
TYPED = Table(
    [
        TableColumn("flag", "boolean", spec("flag", "BOOL", (None, 1))),
        TableColumn("text", "text", spec("text", "BYTES", (None,))),
    ],
    None,
)


def read(text, table=FLOWERS, *, nan=False, model=NUMBERS, max_rows=100):
    body = text if isinstance(text, bytes) else text.encode()
    return read_csv(model, table, body, max_rows, nan=nan)


def test_columns_are_found_by_the_first_line_in_any_order():
    expected = [[5.5, 2, 1], [4, 3, 0]]
    assert read("colour,length,whole\r\nblue,5.5,2.0\r\nred,4,3\r\n")["x"].tolist() == expected
    assert read("\ufeffwhole,length,colour\n2, 5.5 ,blue\n\n3,4e0,red")["x"].tolist() == expected
    assert read(',whole,length,colour\n0,2,5.5,"blue"\n1,3,4,red\n')["x"].tolist() == expected


def test_texts_and_truth_values_are_read_in_columns_of_these():
    feeds = read('text,flag\n"a, ""b""\nc",true\n1,0\n', TYPED)
    assert feeds["text"].tolist() == ['a, "b"\nc', "1"]
    assert feeds["flag"].tolist() == [[True], [False]]


def test_a_model_without_names_takes_rows_of_numbers():
    assert read("1,2,3\n4,5,6\n", None)["x"].tolist() == [[1, 2, 3], [4, 5, 6]]
    assert read("", None)["x"].shape == (0, 3)


@pytest.mark.parametrize(
    ("text", "table", "message"),
    [
        ("length,whole\n1,2\n", FLOWERS, "the first line of the CSV lacks the column 'colour'"),
        ("1,2,red\n", FLOWERS, "the first line of the CSV has an unknown column '1'"),
        ("", FLOWERS, "the CSV is empty; its first line must name the columns: length, whole, colour"),
        ("length,whole,colour\n1,2\n", FLOWERS, "line 2 of the CSV has 2 cells; expected 3"),
        (
            "length,whole,colour\n1,2,red\nlong,2,red\n",
            FLOWERS,
            "line 3, column 'length', is the string 'long'; expected",
        ),
        ("length,whole,colour\n,2,red\n", FLOWERS, "line 2, column 'length', is null; expected a number"),
        ("length,whole,colour\nnan,2,red\n", FLOWERS, "line 2, column 'length', is the string 'NaN'"),
        ("length,whole,colour\n1_0,2,red\n", FLOWERS, "line 2, column 'length', is the string '1_0'"),
        ('length,whole,colour\n1,2,"red\n', FLOWERS, "line 2 of the CSV: unexpected end of data"),
        ("a,b,c\n1,2,3\n", None, "begins with 'a'; model 'm' has no column names"),
        ("1,2\n", None, "line 1 of the CSV has 2 cells; expected 3"),
        ("1,2,3\n1,2,x\n", None, "line 2, cell 3, is the string 'x'; expected a number"),
        (b"length\xff", FLOWERS, "the CSV is not valid UTF-8 at byte 6"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(text, table, message):
    with pytest.raises(InvalidRequestError, match=message):
        read(text, table)


def test_more_rows_than_a_request_may_have_are_refused():
    with pytest.raises(InvalidRequestError, match="the CSV has more than 2 rows"):
        read("1,2,3\n" * 3, None, max_rows=2)


def test_empty_cells_are_nan_where_these_are_allowed():
    array = read("length,whole,colour\n,2,red\ninf,1,red\n", nan=True)["x"]
    assert np.isnan(array[0, 0])
    assert np.isposinf(array[1, 0])


def test_csv_needs_columns_or_rows_of_numbers():
    with pytest.raises(InvalidRequestError, match="'m' has neither"):
        read("1\n", None, model=SimpleNamespace(name="m", inputs=(spec(shape=(None, 2, 2)),)))


@given(st.text(alphabet='ab1,."\n\r\t-e\x00é', max_size=60))
def test_any_text_is_read_or_refused(text):
    for table in (FLOWERS, TYPED, None):
        with contextlib.suppress(AppError):
            feeds = read(text, table, nan=True)
            assert all(isinstance(array, np.ndarray) for array in feeds.values())


class Batch:
    """As much of a run's outputs as an answer needs."""

    whole, probabilities = True, np.zeros((2, 2))

    def __init__(self, **outputs):
        self.output_names = tuple(outputs)
        self._arrays = list(outputs.values())

    def values(self, index, start, stop):
        return self._arrays[index][start:stop]

    def best(self):
        return [(1, b"0.75"), (0, b"0.5")]


def written(batch, indices, labels=(), best=()):
    labelled = SimpleNamespace(labels=best) if best else None
    model = SimpleNamespace(labelled=labelled, output_labels=dict(labels))
    headers, body = CsvResponse(indices).encode(model, InferenceResult(batch, 0, 2))
    assert headers == [(b"content-type", b"text/csv; charset=utf-8")]
    return list(csv.reader(io.StringIO(body.decode(), newline="")))


def test_an_answer_has_a_column_for_each_number():
    scores = np.array([[0.1, -2], [1e-7, 3]], np.float32)
    batch = Batch(scores=scores, size=np.array([[4], [5]]), sure=np.array([True, False]))
    assert written(batch, (0, 1, 2), {"scores": ["no", "yes"]}, ["no", "yes"]) == [
        ["label", "probability", "scores[no]", "scores[yes]", "size", "sure"],
        ["yes", "0.75", "0.1", "-2.0", "4", "true"],
        ["no", "0.5", "1e-07", "3.0", "5", "false"],
    ]
    assert written(batch, (0,))[0] == ["scores[0]", "scores[1]"]
    read_back = np.array(written(batch, (0,))[1:], np.float32)
    np.testing.assert_array_equal(read_back, scores)


def test_an_answer_without_rows_has_its_names():
    batch = Batch(scores=np.zeros((0, 2), np.float32), size=np.zeros(0, np.int64))
    assert written(batch, (0, 1), {"scores": ["no", "yes"]}) == [["scores[no]", "scores[yes]", "size"]]


def test_outputs_that_are_no_columns_are_refused():
    with pytest.raises(InvalidRequestError, match="output 'cube' has 3 dimensions"):
        written(Batch(cube=np.zeros((2, 2, 2))), (0,))
    with pytest.raises(InvalidRequestError, match="output 'b' has 1 rows, others 2"):
        written(Batch(a=np.zeros((2, 1)), b=np.zeros((1, 1))), (0, 1))
