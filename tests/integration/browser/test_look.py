"""The look of the page at three widths, light and dark: nothing hangs over, no text is cut, axe finds nothing."""

import pytest

WIDTHS = [320, 390, 768, 1280]
CARDS = ["animals", "progress", "tags", "plain", "photos", "echo"]
# Text that leaves the box that it belongs to, what scrolls by itself left out.
OUTSIDE = """() => {
  const boxes = ".chart, .figures div, .pill, .model > header, .card, button, .layer, body";
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode, element = node.parentElement;
    if (!node.textContent.trim() || !element.checkVisibility()) continue;
    if (element.closest(".skip, .scroll, pre, textarea, select")) continue;
    const range = document.createRange();
    range.selectNodeContents(node);
    const box = element.closest(boxes).getBoundingClientRect();
    for (const part of range.getClientRects())
      if (part.left < box.left - 1 || part.right > box.right + 1 || part.bottom > box.bottom + 2)
        found.push([node.textContent, Math.round(part.right - box.right), Math.round(part.bottom - box.bottom)]);
  }
  return found;
}"""
# The same with the longest figures that the charts may show.
OUTSIDE_WITH_FIGURES = f"""() => {{
  for (const value of document.querySelectorAll(".chart > p")) value.firstChild.textContent = "12.3 k/s";
  for (const value of document.querySelectorAll(".chart small")) value.textContent = "p99 12.3 ms";
  return ({OUTSIDE})();
}}"""
# Cards, tiles and rows that lie on one another.
OVERLAPS = """() => [".model", ".figures div", ".chart", ".block", ".layer", ".fields > div"].flatMap((selector) => {
  const all = [...document.querySelectorAll(selector)].filter((one) => one.checkVisibility());
  const rects = all.map((one) => one.getBoundingClientRect());
  const over = (a, b, from, to) => Math.min(a[to], b[to]) - Math.max(a[from], b[from]) > 1;
  return rects.flatMap((a, i) => rects.slice(i + 1).filter((b) =>
    over(a, b, "left", "right") && over(a, b, "top", "bottom")
  ).map((b) => [selector, a.toJSON(), b.toJSON()]));
})"""
# Bars of one answer that begin at different places, and fields of one row that end at different heights.
UNEVEN = """() => {
  const sides = (selector, side) => [...document.querySelectorAll(selector)].filter((one) => one.checkVisibility())
    .map((one) => Math.round(one.getBoundingClientRect()[side]));
  const bars = [...document.querySelectorAll(".bars")].filter((one) => one.checkVisibility());
  const starts = bars.map((one) =>
    new Set([...one.querySelectorAll(".track")].map((track) => Math.round(track.getBoundingClientRect().left))).size);
  const rows = new Set(sides(".fields label", "bottom")).size;
  return [starts.filter((count) => count !== 1), rows - new Set(sides(".fields input, .fields select", "bottom")).size];
}"""


def prepare(page):
    """Show what there is to show: an answer of each form, an hour of charts, what can be folded out."""
    for name in CARDS:
        card = page.locator(f"[data-model={name}]")
        if name != "photos":
            card.get_by_role("button", name="Ask").click()
            card.locator(".answer", has_text="version 1").wait_for()
    page.locator("[data-model=animals] .snippets summary").click()
    page.locator("[data-model=tags] .chart path").first.wait_for()


@pytest.mark.parametrize(
    ("width", "color_scheme"), [*((width, "light") for width in WIDTHS), (390, "dark"), (1280, "dark")]
)
def test_cards_fit_and_axe_finds_nothing(many, visit, width, color_scheme):
    # Loaded past the page's own policy, which would refuse a script from elsewhere.
    size = {"width": width, "height": 900}
    page = visit(many.url, CARDS, viewport=size, color_scheme=color_scheme, bypass_csp=True).page
    prepare(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(OUTSIDE_WITH_FIGURES) == []
    assert page.evaluate(OVERLAPS) == []
    assert page.evaluate(UNEVEN) == [[], 0]
    if width in (390, 1280):
        from axe_playwright_python.sync_playwright import Axe

        violations = Axe().run(page).response["violations"]
        assert [(found["id"], [node["html"] for node in found["nodes"]]) for found in violations] == []


@pytest.mark.parametrize("width", WIDTHS)
def test_the_shipped_models_fit(server, visit, width):
    page = visit(server.url, viewport={"width": width, "height": 900}).page
    page.locator(".samples button").first.click()
    page.locator(".answer", has_text="version 1").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(OUTSIDE_WITH_FIGURES) == []
    assert page.evaluate(OVERLAPS) == []


def test_the_two_schemes_differ_and_text_keeps_its_contrast(many, visit):
    colours = {}
    for scheme in ("light", "dark"):
        page = visit(many.url, opened=[], color_scheme=scheme).page
        colours[scheme] = page.evaluate(
            "['backgroundColor', 'color'].map((name) => getComputedStyle(document.body)[name])"
            ".map((colour) => colour.match(/\\d+/g).map(Number))"
        )
    brightness = {scheme: [sum(colour) / 3 for colour in found] for scheme, found in colours.items()}
    assert brightness["light"][0] > 200 > 60 > brightness["light"][1]
    assert brightness["dark"][0] < 60 < 200 < brightness["dark"][1]
