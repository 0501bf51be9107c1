"""The page of a server that asks for API keys."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PREDICT, CONTROL = "predict-key-0123456789", "control-key-0123456789"


@pytest.fixture(scope="module")
def guarded(start):
    arguments = ["--predict-keys", PREDICT, "--control-keys", CONTROL, "--model-control", "explicit"]
    with start(ROOT / "models", *arguments) as server:
        yield server


@pytest.fixture
def tab(chromium):
    context = chromium.new_context()
    page = context.new_page()
    page.set_default_timeout(60_000)
    yield page
    context.close()


def enter(page, key):
    page.get_by_label("API key").fill(key)
    page.get_by_role("button", name="Use it").click()


def test_a_key_is_asked_for_and_kept_in_the_tab(guarded, tab):
    tab.goto(guarded.url)
    tab.locator("#key").wait_for()
    assert tab.locator("#state").inner_text() == "key required"
    assert "an API key is required" in tab.locator("#alert").inner_text()
    enter(tab, "not-a-known-key-012345")
    tab.get_by_text("the API key is unknown").wait_for()
    enter(tab, PREDICT)
    tab.wait_for_selector("[data-model] .about .block")
    assert tab.locator("#key").is_hidden()
    assert tab.locator("#alert").is_hidden()
    tab.locator(".samples button").first.click()
    tab.locator(".answer b", has_text="0").wait_for()
    tab.reload()
    tab.wait_for_selector("[data-model] .about .block")
    assert tab.locator("#key").is_hidden()
    assert tab.evaluate("localStorage.length") == 0
    assert PREDICT not in tab.content()
    assert tab.context.cookies() == []


def test_a_key_for_predicting_is_told_that_it_may_not_reload_and_another_may(guarded, tab):
    tab.goto(guarded.url)
    enter(tab, PREDICT)
    tab.get_by_role("button", name="Reload from disk").click()
    tab.get_by_text("this API key allows inference, but not to load, unload or benchmark models").wait_for()
    tab.locator("#key").wait_for()
    enter(tab, CONTROL)
    tab.locator("#key").wait_for(state="hidden")
    tab.get_by_role("button", name="Reload from disk").click()
    tab.get_by_text("Loaded.").wait_for()


def test_no_field_where_no_key_is_needed(server, visit):
    page = visit(server.url).page
    assert page.locator("#key").is_hidden()


def test_a_copied_request_holds_the_name_of_the_key_alone(guarded, tab):
    tab.goto(guarded.url)
    enter(tab, PREDICT)
    tab.locator(".samples button").first.click()
    tab.locator(".answer b", has_text="0").wait_for()
    tab.locator(".snippets summary").first.click()
    snippet = tab.locator(".snippets pre").first
    command = snippet.text_content()
    assert '-H "Authorization: Bearer $PANTHER_API_KEY"' in command
    tab.get_by_role("button", name="Python").click()
    program = snippet.text_content()
    assert PREDICT not in command + program
    environment = {**os.environ, "PANTHER_API_KEY": PREDICT}
    for line in (["bash", "-c", command], [sys.executable, "-c", program]):
        ran = subprocess.run(line, env=environment, check=False, capture_output=True, text=True, timeout=60)
        assert "predictions" in ran.stdout, ran.stderr
