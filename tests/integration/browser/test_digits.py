"""Drawn and real digits: made into the images that the model was trained on, and recognised."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

ROOT = Path(__file__).parents[3]
# Strokes as a person draws them, on a pad of 100 by 100; some digits in two hands.
STROKES = {
    "0": [[[50, 5], [30, 12], [20, 35], [20, 65], [30, 90], [50, 96], [70, 90], [80, 65], [80, 35], [70, 12], [50, 5]]],
    "1": [[[35, 22], [52, 5], [52, 95]]],
    "1, a line": [[[50, 10], [49, 90]]],
    "2": [[[22, 25], [30, 10], [50, 4], [70, 10], [76, 28], [68, 48], [45, 68], [22, 93], [80, 93]]],
    "3": [
        [[22, 14], [45, 4], [68, 12], [72, 28], [60, 44], [42, 48], [62, 52], [78, 68], [72, 88], [48, 97], [22, 88]]
    ],
    "4": [[[60, 4], [20, 62], [84, 62]], [[62, 38], [60, 97]]],
    "5": [[[76, 6], [32, 6], [26, 46], [50, 38], [72, 48], [76, 70], [64, 90], [42, 96], [22, 86]]],
    "6": [[[64, 4], [40, 24], [26, 54], [26, 78], [40, 95], [62, 95], [74, 78], [66, 60], [46, 56], [28, 70]]],
    "7": [[[20, 8], [80, 8], [60, 45], [45, 96]], [[32, 50], [74, 50]]],
    "8": [
        [[50, 48], [28, 34], [28, 14], [50, 4], [72, 14], [72, 34], [50, 48]],
        [[50, 48], [26, 66], [28, 88], [50, 97], [72, 88], [74, 66], [50, 48]],
    ],
    "9": [[[74, 30], [64, 46], [42, 48], [26, 34], [28, 14], [48, 4], [68, 10], [74, 30], [72, 60], [62, 96]]],
}


@pytest.fixture(scope="module")
def samples():
    return json.loads((ROOT / "app" / "http" / "dashboard" / "samples" / "digits.json").read_text())["samples"]


@pytest.fixture(scope="module")
def page(server, chromium):
    """One page for all drawings, so that none of them starts anew."""
    context = chromium.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.goto(server.url)
    page.locator(".samples button").nth(19).wait_for()
    yield page
    context.close()


def draw(page, strokes, scale=1.0, left=0.0, top=0.0):
    page.get_by_role("button", name="Clear").click()
    pad = page.locator(".pad")
    pad.scroll_into_view_if_needed()
    box = pad.bounding_box()
    for stroke in strokes:
        points = [
            (box["x"] + box["width"] * (left + scale * x / 100), box["y"] + box["height"] * (top + scale * y / 100))
            for x, y in stroke
        ]
        page.mouse.move(*points[0])
        page.mouse.down()
        for point in points[1:]:
            page.mouse.move(*point, steps=3)
        page.mouse.up()


def wait_for(page, until, digit):
    """Half a drawing is answered too: it is the last answer that counts."""
    until(
        page,
        "document.querySelector('.answer span').textContent.startsWith('version')"
        f" && document.querySelector('.answer b').textContent === {digit!r}",
    )


@pytest.mark.parametrize("name", STROKES)
def test_a_drawn_digit_is_recognised(page, name, until):
    draw(page, STROKES[name])
    wait_for(page, until, name[0])
    assert page.locator(".bars .best").inner_text().split()[0] == name[0]


def test_size_and_place_of_a_drawing_do_not_matter(server, visit, until):
    page = visit(server.url, viewport={"width": 390, "height": 844}).page
    draw(page, STROKES["3"], scale=0.35, left=0.6, top=0.05)
    wait_for(page, until, "3")


def test_real_digits_are_recognised_but_for_what_the_accuracy_allows(page, samples, until):
    right = 0
    for index, sample in enumerate(samples):
        page.locator(".samples button").nth(index).click()
        until(page, "document.querySelector('.answer span').textContent.startsWith('a real')")
        right += page.locator(".answer b").inner_text() == sample["label"]
    assert right >= 19


def test_the_samples_are_real_and_held_out(samples):
    from panther.train.data import load_digits

    held_out = load_digits(seed=0)
    small = F.avg_pool2d(held_out.test_x.reshape(-1, 1, 28, 28), 1)
    assert [sample["label"] for sample in samples] == sorted(str(label) for label in range(10) for _ in range(2))
    for sample in samples:
        cells = torch.tensor([int(digit, 17) for digit in sample["counts"]], dtype=torch.float32) / 16
        image = F.interpolate(cells.reshape(1, 1, 8, 8), size=(28, 28), mode="bilinear", align_corners=False)
        near = (small - image).abs().amax(dim=(1, 2, 3)).min(dim=0)
        assert near.values < 1e-6
        assert held_out.labels[held_out.test_y[near.indices]] == sample["label"]


def test_images_are_enlarged_as_in_training(page, samples):
    for sample in samples[::5]:
        cells = [int(digit, 17) for digit in sample["counts"]]
        ours = page.evaluate(
            "async cells => (await import('/dashboard/try/digit.js')).enlarged(cells)",
            cells,
        )
        small = torch.tensor(cells, dtype=torch.float64).reshape(1, 1, 8, 8) / 16
        theirs = F.interpolate(small, size=(28, 28), mode="bilinear", align_corners=False).reshape(-1)
        np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-12)


@pytest.mark.parametrize("name", STROKES)
def test_drawings_look_like_the_training_data(page, name):
    """The digit fills the height, is centred, and holds the share of ink that the data holds."""
    cells = page.evaluate(
        "async strokes => (await import('/dashboard/try/digit.js')).fromStrokes(strokes)",
        STROKES[name],
    )
    image = np.reshape(cells, (8, 8))
    assert image.min() == 0
    assert image.max() <= 16
    assert 0.24 < image.mean() / 16 < 0.39  # the 1st and 99th percentile of the data
    assert image[0].any()
    assert image[-1].any()
    columns = np.flatnonzero(image.any(axis=0))
    assert abs(columns.min() - (7 - columns.max())) <= 1
