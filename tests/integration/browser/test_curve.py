"""The compression curve of a model: a picture with text, the same as a table, and cards with odd values."""

import json

import httpx
from helpers import build


def curve_of(page, name):
    return page.locator(f"[data-model={name}] .pareto")


def stats_curve(url, name):
    (report,) = httpx.get(f"{url}/models/{name}/stats", timeout=60).json()["models"]
    return report["compression_curve"]


def circles(page, name):
    """Class, x and y of every circle of the picture."""
    return (
        curve_of(page, name)
        .locator("> svg circle")
        .evaluate_all(
            "all => all.map((one) => [one.getAttribute('class'), +one.getAttribute('cx'), +one.getAttribute('cy')])"
        )
    )


def test_the_picture_is_the_curve_of_the_card(many, visit):
    visited = visit(many.url, ["animals"])
    block, points = curve_of(visited.page, "animals"), stats_curve(many.url, "animals")["points"]
    found = circles(visited.page, "animals")
    # an error of 0 has no place on a logarithmic scale
    assert len(found) == len(points) - 1 == 5
    assert [kind for kind, *_ in found].count("predicted") == 1
    assert found[-1][0] == "chosen"
    by_x = sorted(found, key=lambda circle: circle[1])
    drawn = sorted((point for point in points if point["error"]), key=lambda point: point["bytes"])
    assert [circle[0] == "chosen" for circle in by_x] == [point["chosen"] for point in drawn]
    by_y = [point["error"] for _, point in sorted(zip([c[2] for c in by_x], drawn, strict=True), key=lambda p: p[0])]
    assert by_y == sorted(by_y, reverse=True)  # more error is higher
    assert block.locator("h3").inner_text() == "Error over bytes\nerror of the outputs at most 0.1"
    # two of the measured ones are beaten by no other: the line joins three points
    assert block.locator(".front").get_attribute("d").count("L") == 2
    assert visited.problems == []


def test_it_reads_as_text_and_as_a_table(many, visit):
    page = visit(many.url, ["animals", "tags"]).page
    for name, title in (("animals", "Error of the outputs over bytes"), ("tags", "Metric over bytes")):
        picture = curve_of(page, name).get_by_role("img")
        picture.wait_for()
        labels = picture.get_attribute("aria-labelledby").split()
        texts = [page.locator(f"#{label}").text_content() for label in labels]
        assert len(texts) == 2
        assert texts[0].startswith(title)
        assert "This file: " in texts[1]
    curve_of(page, "tags").get_by_text("Curve as a table").click()
    assert curve_of(page, "tags").locator("thead th").all_inner_texts() == ["Bytes", "Error", "Metric", "Origin"]
    assert [row.split("\t") for row in curve_of(page, "tags").locator("tbody tr").all_inner_texts()] == [
        ["3,000", "0.35", "0.91", "measured"],
        ["4,100", "0.2", "0.955", "measured, this file"],
        ["6,000", "0.11", "0.968", "measured"],
        ["8,000", "0.05", "\N{EN DASH}", "predicted"],
    ]
    assert "The original: 20.0 kB, metric 0.972." in curve_of(page, "tags").inner_text()


def test_models_without_a_curve_have_no_section(many, visit):
    page = visit(many.url, ["progress", "plain"]).page
    assert page.locator(".pareto").count() == 0


POINT = {"bytes": 100, "error": 0.5, "measured": True}
ODD = {
    "one": [{**POINT, "chosen": True}],
    "exact": [{**POINT, "error": 0, "chosen": True}],
    "empty": [{**POINT, "bytes": 0, "chosen": True}],
    "wide": [{**POINT, "bytes": 1, "error": 5e-324}, {**POINT, "bytes": 2**53 - 1, "error": 1.7e308, "chosen": True}],
    "far": [{**POINT, "metric": -1.7e308}, {**POINT, "metric": 1.7e308, "chosen": True}],
    "large": [{**POINT, "metric": -4e307}, {**POINT, "metric": 4e307, "chosen": True}],
    "same": [{**POINT, "metric": 0.5}, {**POINT, "metric": 0.5, "chosen": True}],
}


def test_odd_values_are_drawn_or_left_to_the_table(start, visit, tmp_path):
    for name, points in ODD.items():
        # a text that would be markup if the page took it for that
        curve = {"budget": "<img src=x onerror=alert(1)>", "original_bytes": 0, "points": points}
        build.put(tmp_path, build.Tiny().graph(), name, card=build.sketched_card(compression_curve=curve))
    refused = {"budget": "b", "original_bytes": 1, "points": [POINT]}
    card = build.sketched_card()
    build.put(tmp_path, build.Tiny().graph(), "refused", card=json.dumps(card | {"compression_curve": refused}))
    with start(tmp_path, "--default-model", "one") as server:
        visited = visit(server.url, [*ODD, "refused"])
        page = visited.page
        for name, points in ODD.items():
            drawn = circles(page, name)
            assert len(drawn) == (0 if name in ("exact", "empty", "far", "large") else len(points)), name
            assert all(0 < x < 420 and 0 < y < 230 for _, x, y in drawn), name
            assert curve_of(page, name).locator("tbody tr").count() == len(points)
            assert "<img" in curve_of(page, name).inner_text()
        assert page.locator(".pareto img").count() == 0
        assert "exactly one of the points must be chosen" in page.locator("[data-model=refused]").inner_text()
        assert page.locator("[data-model=refused] .pareto").count() == 0
        assert visited.problems == []
