"""The list of models: broken ones first and told once, filters, cards that open, and the cost of reading it."""

import httpx
import pytest

NAMES = ["unreadable", "animals", "echo", "photos", "plain", "progress", "tags"]


def shown(page):
    rows = page.locator("[data-model]").all()
    return [row.get_attribute("data-model") for row in rows if row.is_visible()]


def test_broken_models_come_first_and_are_told_once(many, visit):
    page = visit(many.url, opened=[]).page
    page.locator("[data-model]").nth(6).wait_for()
    assert shown(page) == NAMES
    assert page.locator("[data-model=unreadable] .pill.bad").inner_text() == "broken"
    page.get_by_role("button", name="unreadable", exact=True).click()
    page.locator("[data-model=unreadable] tbody tr").wait_for()
    assert page.locator("body").inner_text().count("INVALID_PROTOBUF") == 1
    assert page.locator("#alert").is_hidden()
    assert page.locator("#state").inner_text() == "not ready"


def test_the_filters_choose_by_name_and_state(many, visit):
    page = visit(many.url, opened=[]).page
    states = page.get_by_role("group", name="Filter models by state")
    assert states.get_by_role("button").all_inner_texts() == ["All 7", "Broken 1", "Ready 6"]
    states.get_by_role("button", name="Broken").click()
    assert shown(page) == ["unreadable"]
    states.get_by_role("button", name="Ready").click()
    page.get_by_label("Filter models by name").fill("P")
    assert shown(page) == ["photos", "plain", "progress"]
    page.get_by_label("Filter models by name").fill("nowhere")
    assert shown(page) == []
    assert page.get_by_text("No model matches “nowhere”.").is_visible()
    page.get_by_label("Filter models by name").fill("")
    states.get_by_role("button", name="All").click()
    page.wait_for_timeout(2500)  # a reading of the counters keeps the filters
    assert shown(page) == NAMES


def test_a_card_opens_by_its_row_and_by_the_address(many, visit, until):
    page = visit(many.url, opened=[]).page
    assert not any(card.is_visible() for card in page.locator(".card").all())
    page.get_by_role("button", name="plain", exact=True).click()
    page.locator("[data-model=plain] .about .block").first.wait_for()
    assert page.url.endswith("#model=plain")
    page.reload()
    page.locator("[data-model=plain] .about .block").first.wait_for()
    assert [card.is_visible() for card in page.locator(".card").all()] == [name == "plain" for name in NAMES]
    page.get_by_role("button", name="plain", exact=True).click()
    until(page, "!location.hash")
    assert page.locator("[data-model=plain] .card").is_hidden()


def test_a_file_without_a_card_looks_normal(many, visit):
    page = visit(many.url, opened=["plain"]).page
    card = page.locator("[data-model=plain]")
    assert card.locator(".figures dd").count() == 2
    assert card.locator(".note, .pill.bad, .pill.warn").count() == 0
    assert "FP32 [any, 6]" in card.inner_text()


def test_readings_are_small_and_details_are_read_for_open_cards_alone(many, visit, until):
    page = visit(many.url, opened=[]).page
    asked = []
    page.on("request", lambda request: asked.append(request.url.removeprefix(many.url)))
    page.wait_for_timeout(5000)
    assert set(asked) <= {"/stats?live=true&histograms=true"}
    assert len(asked) <= 3
    asked.clear()
    page.get_by_role("button", name="tags", exact=True).click()
    page.locator("[data-model=tags] .layer").first.wait_for()
    page.wait_for_timeout(4500)
    assert asked.count("/models/tags/stats") == 1
    live, whole = (httpx.get(f"{many.url}/stats?histograms=true{more}", timeout=60) for more in ("&live=true", ""))
    assert len(live.content) < len(whole.content) / 2


def test_layers_in_few_bits_and_convolutions_are_drawn_to_scale(many, visit):
    page = visit(many.url, opened=["tags"]).page
    rows = page.locator("[data-model=tags] .layer")
    names = [row.locator("strong").inner_text() for row in rows.all()]
    assert names == ["conv", "fc1", "fc2"]
    texts = [" ".join(row.locator(".how").inner_text().split()) for row in rows.all()]
    assert texts == [
        "16 → 32 channels, kernel 3\N{MULTIPLICATION SIGN}3, L=1, k=4, runs as its terms",
        "784 → 1024, rank 16, 4 bits",
        "1024 → 10, 4 bits, blocks of 16",
    ]
    areas = """svg => { const area = r => r.width.baseVal.value * r.height.baseVal.value;
        return ["dense", "learnable", "fixed"].map(kind =>
          [...svg.querySelectorAll("rect." + kind)].reduce((sum, r) => sum + area(r), 0)); }"""
    dense, learnable, fixed = rows.nth(0).locator("svg").first.evaluate(areas)
    assert learnable / dense == pytest.approx(1728 / 4608, rel=0.05)
    assert fixed / dense == pytest.approx(192 / 4608, rel=0.6)  # lines of a tenth of a pixel are drawn thicker
    dense, stored, _ = rows.nth(2).locator("svg").first.evaluate(areas)
    assert stored / (dense / 2) == pytest.approx(4 / 32, rel=0.01)  # W, and the outline of what is stored
    assert "20.9 kB" in rows.nth(1).inner_text()


HISTORY = """async () => {
  const { History, RANGES } = await import("/dashboard/history.js");
  const history = new History();
  const live = (requests, counts) => ({ requests, failed: 0, rows: 2 * requests, executions: requests,
    executed_rows: 2 * requests, histograms: { request: { upper_bounds_ms: [1, 2, null], counts } } });
  for (let at = 0; at <= 7200; at += 2) history.add(live(3 * at, [2 * at, at, 0]), at);
  history.add(live(0, [0, 0, 0]), 7202);  // a restart
  history.add(live(10, [0, 10, 0]), 9202);  // nobody looked for a while
  return RANGES.map((_, index) => history.points(index)).map((points) => ({
    count: points.length, first: points[0], last: points.at(-1), rates: points.map((point) => point.rate) }));
}"""


def test_the_history_keeps_a_day_and_adds_counters_up(many, visit):
    short, hour, day = visit(many.url, opened=[]).page.evaluate(HISTORY)
    assert short["count"] == 1
    assert short["last"] == {"from": 7202, "to": 9202, "rate": 0.005, "failures": 0, "p50": 1.9, "p99": 1.9, "batch": 2}
    assert 50 <= hour["count"] <= 55  # of half a minute, from 1.5 hours in
    assert set(hour["rates"][:-1]) == {3}
    assert day["count"] == 13  # two hours in parts of ten minutes, and the pause
    assert day["first"] == {"from": 0, "to": 600, "rate": 3, "failures": 0, "p50": 0.95, "p99": 1.9, "batch": 2}


def test_the_charts_show_an_hour_and_a_day_too(many, visit, until):
    httpx.post(f"{many.url}/models/plain/predict", json={"inputs": [[0.0] * 6]}, timeout=60)
    page = visit(many.url, opened=["plain"]).page
    for name in ("1 h", "24 h", "2 min"):
        page.get_by_role("button", name=name, exact=True).click()
        label = page.locator(".chart svg").first.get_attribute("aria-label")
        assert label.startswith(f"Requests over the last {name}: now ")
        assert page.locator(".chart .axis").first.inner_text().startswith(f"{name} ago")


def test_the_shipped_models_show_their_gain_in_the_list(server, visit):
    page = visit(server.url).page
    gains = page.locator(".gain").all_inner_texts()
    saved = [model["savings"] for model in httpx.get(f"{server.url}/models", timeout=60).json()["models"]]
    assert gains[0] == f"{saved[0]['bytes_reduction_percent']:.1f}% smaller"
    times = f"{1 / saved[1]['ratio_to_dense_twin']:.3g}"
    assert (
        gains[1]
        == f"{saved[1]['bytes_reduction_percent']:.1f}% smaller, {times}\N{MULTIPLICATION SIGN} as fast as dense"
    )
    assert page.locator("[data-model=digits] .pill", has_text="default").count() == 1
    assert page.locator("[data-model=digits] .card").is_visible()
