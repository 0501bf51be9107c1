"""The Pareto pictures: every side has a label that covers nothing, and the front and the rivals are chosen rightly."""

from __future__ import annotations

import itertools
import json
import random

import matplotlib as mpl
import pytest
from reporting import pareto
from reporting.compress import proof_rows, strongest_rival
from reporting.labels import covered, place
from reporting.plots import STYLE
from reporting.results import FOLDER


def side(cosine, megabytes, ms):
    times = {f"{kind}_{size}": ms * size for kind in ("median_ms", "fastest_ms") for size in (1, 16)}
    size = {"file_bytes": megabytes * 1e6, "linear_bytes": megabytes * 0.4e6}
    return {"cosine": cosine, **size, **times, "speed_1": 15 / ms, "speed_16": 15 / ms}


MANY = {
    "float32": side(1, 90.3, 15),
    "quantize_": side(0.9989, 23, 5.6),
    "quantize_, max_error=0.03": side(0.9995, 29.6, 8),
    "quantize_, int4": side(0.9886, 18.3, 8.7),
    "quantize_, int4, 4-bit embeddings": side(0.9831, 12.8, 8.8),
    "quantize_, int4, correction of rank 16": side(0.9921, 19.1, 9.6),
    "quantize_, int4 in blocks of 32": side(0.9931, 19.2, 9.7),
    "quantize_, int4 in blocks of 32, 4-bit embeddings": side(0.9885, 13.8, 9.7),
    "quantize_, int8 in blocks of 128": side(0.9997, 23.4, 9.9),
    "compress, 18.5 MB": side(0.9941, 18.5, 8.1),
    "compress, 15 MB": side(0.9962, 15.1, 7),
    "compress, 12.8 MB": side(0.9914, 12.9, 7.9),
    "GPTQ, 4 bits, blocks of 128": side(0.985, 54, 8.7),
    "SVD of the weights, 0.5 of the bytes": side(0.331, 69, 9),
    "SVD whitened by the inputs, 0.5 of the bytes": side(0.802, 69, 9),
    "quantize_dynamic, per channel": side(0.9929, 22.8, 5.6),
    "quantize_dynamic, 7 bits (safe on AVX2)": side(0.9915, 22.8, 5.6),
    "quantize_static, min-max, 7 bits": side(0.9294, 58.6, 6.7),
    "MatMulNBits, 8 bits, blocks of 32": side(0.9997, 60.1, 10.8),
    "MatMulNBits, 4 bits, blocks of 32": side(0.9727, 54.7, 10.2),
    "float16": side(0.9999999, 45.3, 40),
}
MEASURED = json.loads((FOLDER / "compress.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", pareto.PICTURES)
@pytest.mark.parametrize("sides", [MANY, MEASURED["sides"]], ids=["many", "measured"])
def test_labels_name_every_side_and_cover_nothing(name, sides):
    draw, _ = pareto.PICTURES[name]
    with mpl.rc_context(STYLE):
        figure = draw({"compress": {**MEASURED, "sides": sides}})
        figure.draw_without_rendering()
        for axes in figure.axes:
            labels = [text for text in axes.texts if not text.get_text().startswith("float32")]
            assert {text.get_text() for text in labels} == set(sides) - {"float32"}
            assert axes.get_xlabel()
            assert axes.get_ylabel()
            boxes = [text.get_window_extent() for text in axes.texts]
            assert all(axes.bbox.x0 <= box.x0 and box.x1 <= axes.bbox.x1 for box in boxes)
            over = [(a, b) for a, b in itertools.combinations(boxes, 2) if covered(a.extents, b.extents) > 1]
            assert not over
        mpl.pyplot.close(figure)


def test_labels_stand_beside_their_points_where_there_is_room():
    points = [(50.0, 50.0), (150.0, 50.0), (152.0, 52.0)]
    boxes = place(points, [(30.0, 8.0)] * 3, (0.0, 0.0, 300.0, 100.0))
    assert boxes[0][0] == pytest.approx(56)
    assert (boxes[0][1] + boxes[0][3]) / 2 == pytest.approx(50)
    assert covered(boxes[1], boxes[2]) == 0


def test_the_front_is_those_that_no_other_beats():
    draw = random.Random(0)
    for _ in range(50):
        points = {str(i): (draw.randrange(9), draw.randrange(9)) for i in range(8)}
        found = {points[name] for name in pareto.front(points)}
        beaten = {
            a for a, b in itertools.product(points.values(), repeat=2) if a != b and b[0] <= a[0] and b[1] >= a[1]
        }
        assert found == set(points.values()) - beaten


@pytest.mark.parametrize(
    ("ours", "rival"),
    [
        ("quantize_", "quantize_dynamic, per channel"),
        ("compress, 15 MB", "quantize_dynamic, per channel"),  # no rival is as small
        ("quantize_, max_error=0.03", "quantize_dynamic, per channel"),
    ],
)
def test_the_strongest_rival(ours, rival):
    assert strongest_rival(MANY, ours) == rival
    stronger = {**MANY, "new": side(0.9999, MANY[ours]["file_bytes"] / 1e6, 5)}
    assert strongest_rival(stronger, ours) == "new"


def test_rows_of_the_readme():
    first, second = proof_rows(MANY)
    assert first[1] == "23.0 MB, 0.9989, 2.7\u00d7; quantize_dynamic, per channel: 22.8 MB, 0.9929, 2.7\u00d7"
    assert second[1].startswith("15.1 MB, 0.9962, 2.1\u00d7; quantize_dynamic")
    assert len(proof_rows(MEASURED["sides"])) >= 1


def test_families_of_sides():
    names = {side: pareto.family(side).name for side in MANY if side != "float32"}
    assert names["quantize_dynamic, per channel"] == names["float16"] == "onnxruntime"
    assert names["quantize_"] == names["quantize_, int4"] == "panther: quantize_"
    assert names["compress, 15 MB"] == "panther: compress"
    assert names["GPTQ, 4 bits, blocks of 128"] == pareto.family("a side of tomorrow").name == "GPTQ, SVD and others"
