"""The dashboard looks as it did: the parts of six screenshots beside stored ones, three widths, light and dark.

After an intended change, write new ones and look at them:

    WRITE_SCREENS=1 .venv/bin/python -m pytest tests/integration/browser/test_screens.py

A part is compared in size and, an eighth as large, in colours. See docs/decisions/0088-screenshots-by-parts.md.
"""

from __future__ import annotations

import base64
import io
import json
import os
from pathlib import Path

import numpy as np
import pytest

Image = pytest.importorskip("PIL.Image")
FOLDER = Path(__file__).parent / "screens"
WRITE = bool(os.environ.get("WRITE_SCREENS"))
SCALE = 8
# in pixels of the page and as a share; levels are of 255
SIZE_PX, SIZE_SHARE = 8, 0.04
LEVELS, DIFFERENT = 32, 0.02
OPENED = ["animals", "tags"]
# The parts of the page, each by a selector; the first match in its model's card or in the page.
PARTS = {
    "top": ".top",
    "filters": ".tools",
    "broken model": "[data-model=unreadable] > header",
    "closed model": "[data-model=plain]",
    **{
        f"{name}, {part}": f"[data-model={name}] {selector}"
        for name in OPENED
        for part, selector in {
            "header": "> header",
            "form": "section[aria-label^='Try']",
            "savings": ".block:has(> .figures)",
            "curve": ".pareto",
            "layers": ".block:has(.layer)",
            "live": ".block:has(.charts)",
            "tensors": ".block:has([aria-label^='Inputs'])",
            "versions": ".block:has([aria-label^='Versions'])",
        }.items()
    },
    "footer": "footer",
}
# Text that time or the machine changes, then a copy that no script writes to.
FREEZE = """() => {
  const changing = "#server dd, .glance dd, .counts dd, .figures b, .chart p, .chart small, .axis span, .reason, " +
    "td[data-label=Loaded], td[data-label=Requests], td[data-label='Runs on']";
  const copy = document.body.cloneNode(true);
  const chosen = [...document.querySelectorAll("input, select, textarea")].map((field) => field.value);
  copy.querySelectorAll("input, select, textarea").forEach((field, index) => (field.value = chosen[index]));
  for (const element of copy.querySelectorAll(changing)) element.textContent = "0";
  // sizes and times of a file that is exported anew in each run
  for (const element of copy.querySelectorAll(".figures *, .why")) {
    if (!element.children.length) element.textContent = element.textContent.replace(/[0-9.]+/g, "0");
  }
  for (const element of copy.querySelectorAll(".chart svg")) element.replaceChildren();
  for (const element of copy.querySelectorAll(".glance .failing")) element.remove();
  document.body.replaceWith(copy);
}"""
BOXES = """(parts) => Object.fromEntries(Object.entries(parts).map(([name, selector]) => {
  const box = document.querySelector(selector).getBoundingClientRect();
  return [name, [box.left, box.top + scrollY, box.width, box.height].map(Math.round)];
}))"""


def fonts():
    """The page's text in DejaVu Sans as matplotlib ships it: the fonts of the machine do not matter."""
    folder = Path(pytest.importorskip("matplotlib").get_data_path()) / "fonts" / "ttf"
    faces = ""
    for file, weight in (("DejaVuSans.ttf", 400), ("DejaVuSans-Bold.ttf", 700)):
        encoded = base64.b64encode((folder / file).read_bytes()).decode()
        faces += (
            f"@font-face {{font-family: Shipped; font-weight: {weight}; src: url(data:font/ttf;base64,{encoded});}}"
        )
    return f"{faces} * {{font-family: Shipped !important; caret-color: transparent; transition: none !important;}}"


# Whether all parts are there and have not moved for a second.
STEADY = """(parts) => {
  const boxes = Object.values(parts).map((selector) => {
    const box = document.querySelector(selector)?.getBoundingClientRect();
    return box?.height ? [box.left, box.top, box.width, box.height].map(Math.round) : null;
  });
  const now = JSON.stringify(boxes);
  if (window.lastBoxes !== now) [window.lastBoxes, window.boxesSince] = [now, Date.now()];
  return !boxes.includes(null) && Date.now() - window.boxesSince > 1000;
}"""
FONTS = ["400 16px Shipped", "700 16px Shipped"]
LOAD_FONTS = "(fonts) => Promise.all(fonts.map((font) => document.fonts.load(font))).then(() => true)"


def taken(page):
    """The screenshot of the page as it is, an eighth as large, and the boxes of its parts."""
    boxes = page.evaluate(BOXES, PARTS)
    picture = Image.open(io.BytesIO(page.screenshot(full_page=True, animations="disabled"))).convert("RGB")
    return picture.reduce(SCALE), boxes


def part(picture, box):
    left, top, width, height = (value / SCALE for value in box)
    edges = (int(left), int(top), max(int(left) + 1, int(left + width)), max(int(top) + 1, int(top + height)))
    return picture.crop(edges)


def differences(picture, boxes, reference, expected):
    """The parts that differ from the reference, with the reason."""
    found = {}
    for name, box in boxes.items():
        sizes = list(zip(box[2:], expected[name][2:], strict=True))
        if any(abs(a - b) > max(SIZE_PX, SIZE_SHARE * b) for a, b in sizes):
            found[name] = f"{box[2]} x {box[3]} instead of {expected[name][2]} x {expected[name][3]} pixels"
            continue
        before = part(reference, expected[name])
        now = part(picture, box).resize(before.size)
        off = np.abs(np.asarray(now, int) - np.asarray(before, int)).max(axis=2) > LEVELS
        if off.mean() > DIFFERENT:
            found[name] = f"{off.mean():.0%} of it has another colour"
    return found


@pytest.fixture
def shown(many, visit):
    """Open the page as it is compared: ``shown(width, color_scheme)``."""

    def show(width, color_scheme):
        viewport = {"width": width, "height": 900}
        page = visit(many.url, OPENED, viewport=viewport, color_scheme=color_scheme, bypass_csp=True).page
        page.add_style_tag(content=fonts())
        page.evaluate(LOAD_FONTS, FONTS)
        page.wait_for_function(STEADY, arg=PARTS, timeout=60_000, polling=200)
        page.evaluate(FREEZE)
        page.wait_for_function(STEADY, arg=PARTS, timeout=60_000, polling=200)
        return page

    return show


def stored(width, color_scheme):
    boxes = json.loads((FOLDER / "boxes.json").read_text(encoding="utf-8"))
    return Image.open(FOLDER / f"{width}-{color_scheme}.png").convert("RGB"), boxes[f"{width}-{color_scheme}"]


@pytest.mark.parametrize("color_scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 768, 1280])
def test_the_page_looks_as_it_did(shown, width, color_scheme):
    picture, boxes = taken(shown(width, color_scheme))
    if WRITE:
        FOLDER.mkdir(exist_ok=True)
        picture.save(FOLDER / f"{width}-{color_scheme}.png", optimize=True)
        index = FOLDER / "boxes.json"
        known = json.loads(index.read_text(encoding="utf-8")) if index.exists() else {}
        known[f"{width}-{color_scheme}"] = boxes
        rows = ",\n".join(f"{json.dumps(name)}: {json.dumps(known[name])}" for name in sorted(known))
        index.write_text(f"{{\n{rows}\n}}\n", encoding="utf-8")
    assert differences(picture, boxes, *stored(width, color_scheme)) == {}


def test_a_change_of_the_page_is_seen(shown):
    page = shown(1280, "light")
    for rule, names in {
        ".layer svg { visibility: hidden }": {"animals, layers", "tags, layers"},
        ".figures { grid-template-columns: 1fr }": {"animals, savings", "tags, savings"},
        ".pareto > svg { display: none }": {"animals, curve", "tags, curve"},
        ".pill.bad { background: lime }": {"broken model"},
        ".charts { display: none }": {"animals, live", "tags, live"},
    }.items():
        style = page.add_style_tag(content=rule)
        assert names <= set(differences(*taken(page), *stored(1280, "light")))
        style.evaluate("style => style.remove()")
    dark = shown(1280, "dark")
    assert len(differences(*taken(dark), *stored(1280, "light"))) == len(PARTS)
