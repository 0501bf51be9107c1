"""Try it: the form that suits a model, answers with their classes and units, and the request to copy."""

import json
import subprocess
import sys

import numpy as np
import pytest
from helpers import build
from PIL import Image

TINY = build.Tiny()
FIRST = [1.5, 6, 0, 1, 0.2, 3]  # the first sample of the card, as the model takes it
SECOND = [-2.5, 4, 1, 2, 0.3, 1]


@pytest.fixture
def card(many, visit):
    """Open the card of one model."""

    def opened(name, **options):
        page = visit(many.url, opened=[name], **options).page
        return page.locator(f"[data-model={name}]")

    return opened


def ask(card):
    card.get_by_role("button", name="Ask").click()
    card.locator(".answer", has_text="version 1").wait_for()


def bars(card):
    return [tuple(item.inner_text().split()) for item in card.locator(".bars li").all()]


def probabilities(row):
    return [f"{100 * part:.1f}%" for part in TINY.probabilities([row])[0]]


def test_fields_are_labelled_by_column_and_hold_a_real_row(card):
    shown = card("animals")
    assert shown.locator(".fields label").all_inner_texts() == [
        "length cm",
        "legs",
        "wings",
        "colour",
        "weight g",
        "height",
    ]
    values = [field.input_value() for field in shown.locator(".fields input, .fields select").all()]
    assert values == ["1.5", "6", "false", "green", "0.2", "3"]
    ask(shown)
    assert bars(shown) == list(zip(["ant", "bee", "cat"], probabilities(FIRST), strict=True))
    shown.get_by_role("button", name="Sample 2").click()
    shown.get_by_label("legs").fill("2")
    ask(shown)
    row = [SECOND[0], 2, *SECOND[2:]]
    assert bars(shown) == list(zip(["ant", "bee", "cat"], probabilities(row), strict=True))
    assert shown.locator(".answer b").inner_text() == ["ant", "bee", "cat"][TINY.logits([row])[0].argmax()]


def test_an_empty_field_is_a_missing_value(card):
    shown = card("animals")
    shown.get_by_label("legs").fill("")
    shown.get_by_role("button", name="Ask").click()
    shown.locator(".answer", has_text="500").or_(shown.locator(".answer", has_text="NaN")).first.wait_for()


def test_csv_is_answered_row_by_row(card):
    shown = card("animals")
    shown.get_by_role("button", name="CSV").click()
    text = shown.get_by_label("Rows as CSV")
    assert (
        text.input_value() == "length,legs,wings,colour,weight,height\n1.5,6,false,green,0.2,3\n-2.5,4,true,blue,0.3,1"
    )
    text.fill("legs,length,wings,colour,weight,height\n6,1.5,false,green,0.2,3\n4,-2.5,true,blue,0.3,1\n")
    ask(shown)
    rows = [row.split("\t")[1:] for row in shown.locator(".rows tbody tr").all_inner_texts()]
    best = [TINY.probabilities([row])[0] for row in (FIRST, SECOND)]
    assert rows == [[["ant", "bee", "cat"][one.argmax()], f"{100 * one.max():.1f}%"] for one in best]
    text.fill("legs\n4\n")
    shown.get_by_role("button", name="Ask").click()
    shown.locator(".answer", has_text="lacks the column 'length'").wait_for()


def test_a_csv_file_fills_the_text(card, tmp_path):
    shown = card("animals")
    shown.get_by_role("button", name="CSV").click()
    (tmp_path / "rows.csv").write_text("length\n1\n")
    shown.locator("input[type=file]").set_input_files(tmp_path / "rows.csv")
    shown.page.wait_for_timeout(100)
    assert shown.get_by_label("Rows as CSV").input_value() == "length\n1\n"


def test_a_regression_has_its_unit_and_no_sample_is_made_up(card):
    shown = card("progress")
    assert "Zeros show the shape; they are not a real row." in shown.inner_text()
    assert shown.get_by_role("button", name="Random").count() == 0
    shown.locator("textarea").fill(json.dumps({"inputs": [FIRST]}))
    ask(shown)
    names = shown.locator(".numbers dt").all_inner_texts()
    values = shown.locator(".numbers dd").all_inner_texts()
    assert names == ["low", "mean", "high"]
    assert [float(value.removesuffix(" mg/dL")) for value in values] == pytest.approx(
        TINY.logits([FIRST])[0].tolist(), rel=0.01
    )


def test_labels_have_a_bar_each(card):
    shown = card("tags")
    shown.locator("textarea").fill(json.dumps({"inputs": [FIRST]}))
    ask(shown)
    logits = dict(zip(["sea", "sky", "sun"], TINY.logits([FIRST])[0], strict=True))
    parts = {name: f"{100 / (1 + np.exp(-logit)):.1f}%" for name, logit in logits.items()}
    assert dict(bars(shown)) == parts
    chosen = [name for name in sorted(logits, key=lambda name: -logits[name]) if logits[name] > 0]
    assert shown.locator(".answer b").inner_text() == (", ".join(chosen) or "none")


def test_a_text_is_sent_as_it_is(card):
    shown = card("echo")
    shown.get_by_label("Text").fill('a "word"\nof é')
    ask(shown)
    assert shown.locator(".answer b").text_content() == 'a "word"\nof é'


def test_an_image_is_resized_and_scaled(card, tmp_path):
    Image.new("RGB", (40, 20), (255, 51, 0)).save(tmp_path / "a.png")
    shown = card("photos")
    shown.locator("input[type=file]").set_input_files(tmp_path / "a.png")
    shown.locator(".answer", has_text="a.png; version 1").wait_for()
    assert shown.locator(".numbers dd").all_inner_texts() == ["1", "0.2", "0"]
    shown.locator("select").select_option("0 to 255")
    shown.locator(".numbers dd", has_text="51").wait_for()
    shown.locator(".snippets summary").click()
    shown.get_by_role("button", name="Python").click()
    program = shown.locator(".snippets pre").text_content()
    ran = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, check=False, capture_output=True, text=True, timeout=60
    )
    assert "'outputs': {'y': [[255.0, 51.0, 0.0]]}" in ran.stdout, ran.stderr
    (tmp_path / "b.png").write_bytes(b"none")
    shown.locator("input[type=file]").set_input_files(tmp_path / "b.png")
    shown.locator(".answer", has_text="b.png is not an image that this browser reads.").wait_for()


@pytest.mark.parametrize("form", ["Fields", "CSV", "JSON"])
def test_the_request_can_be_copied_and_run(card, many, form):
    shown = card("animals")
    shown.get_by_role("button", name=form, exact=True).click()
    ask(shown)
    expected = shown.locator(".result pre").first.text_content()
    shown.locator(".snippets summary").click()
    command = shown.locator(".snippets pre").text_content()
    assert command.startswith(f"curl -s '{many.url}/models/animals/predict?top_k=3'")
    shown.get_by_role("button", name="Python").click()
    program = shown.locator(".snippets pre").text_content()
    for line in (["bash", "-c", command], [sys.executable, "-c", f"{program.replace('print(', 'print(json.dumps(')})"]):
        ran = subprocess.run(line, check=False, capture_output=True, text=True, timeout=60)
        assert json.loads(ran.stdout) == json.loads(expected), ran.stderr


def test_the_pad_offers_json_too(server, visit):
    page = visit(server.url).page
    page.locator(".ways").get_by_role("button", name="JSON").click()
    assert len(json.loads(page.get_by_label("Request as JSON").input_value())["inputs"]["x"][0]) == 784
    page.locator(".ways").get_by_role("button", name="Draw").click()
    page.locator(".pad").wait_for()
