import math
import xml.etree.ElementTree as ET

import pytest

from panther.compression.curve import Curve, Point

CURVE = Curve(
    (Point(1000, 0.5, 0.6, 0.8), Point(2000, 0.05), Point(3000, 0.01, 0.02, 0.999, metric=0.97), Point(9000, 0.0)), 2
)


def circles(curve):
    tree = ET.fromstring(curve.svg())
    return [element for element in tree.iter() if element.tag.endswith("circle")]


def test_the_table_says_what_is_measured_and_what_was_chosen():
    lines = str(CURVE).splitlines()
    (chosen,) = [line for line in lines if "chosen" in line]
    assert "3,000" in chosen
    assert "0.0200" in chosen
    assert "0.97" in chosen
    (predicted,) = [line for line in lines if "2,000" in line]
    assert "0.0500" in predicted
    assert len([line for line in lines if line.startswith("│")]) == 4


def test_the_picture_has_a_point_for_each_plan_with_an_error():
    found = circles(CURVE)
    # an error of 0 has no place on a logarithmic scale
    assert len(found) == 3
    x = [float(circle.get("cx")) for circle in found]
    y = [float(circle.get("cy")) for circle in found]
    assert x == sorted(x)
    assert y == sorted(y)  # downwards is less error
    assert [circle.get("r") for circle in found] == ["4", "4", "6"]
    assert found[1].get("fill") == "#fff"
    assert "2,000 bytes, predicted error 0.0500" in "".join(found[1].itertext())


def test_the_scale_is_logarithmic():
    points = Curve(tuple(Point(1000, 10.0**-power, 10.0**-power, 1.0) for power in (1, 2, 3)), 0)
    y = [float(circle.get("cy")) for circle in circles(points)]
    assert y[1] - y[0] == pytest.approx(y[2] - y[1], abs=0.2)


def test_it_is_saved_as_svg_alone(tmp_path):
    path = CURVE.save(tmp_path / "curve.svg")
    assert ET.parse(path).getroot().tag.endswith("svg")
    assert CURVE._repr_svg_() == path.read_text(encoding="utf-8")
    with pytest.raises(ValueError, match=r"curve.png\) must end in .svg"):
        CURVE.save(tmp_path / "curve.png")


def test_a_curve_without_points_is_a_picture_too():
    assert circles(Curve((), 0)) == []


def test_a_thinned_curve_keeps_its_ends_the_choice_and_what_was_measured():
    measured = [Point(1000 * i, 1 / i, 1 / i, 0.9) for i in range(1, 21)]
    predicted = [Point(1000 * i + 500, 1 / i) for i in range(1, 21)]
    points = sorted(measured + predicted, key=lambda point: point.bytes)
    curve = Curve(tuple(points), points.index(measured[6]))
    thinned = curve.thinned(8)
    assert len(thinned.points) == 8
    assert thinned.points[thinned.chosen] == measured[6]
    assert list(thinned.points) == sorted(thinned.points, key=lambda point: point.bytes)
    assert {measured[0], measured[-1]} <= set(thinned.points) <= set(measured)
    # all that was measured, then room for five that were only predicted
    more = curve.thinned(25)
    assert set(measured) <= set(more.points)
    assert {predicted[0], predicted[-1]} <= set(more.points)
    assert len(more.points) == 25
    assert curve.thinned(40) == curve
    assert curve.thinned(1).points == (measured[6],)


def test_a_thinned_curve_has_no_infinite_error_but_the_choice():
    points = (Point(1, math.inf), Point(2, 0.5, math.inf, 0.0), Point(3, 0.5, math.nan, 0.0), Point(4, 0.1, 0.1, 1.0))
    assert Curve(points, 3).thinned(32) == Curve((points[3],), 0)
    assert Curve(points, 1).thinned(32) == Curve((points[1], points[3]), 0)
