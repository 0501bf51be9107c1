"""What the page shows, and how it bears what servers do."""

import json
import re
import shutil
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
from helpers import build

ROOT = Path(__file__).parents[3]
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
ROW = json.loads((ROOT / "examples" / "digit.json").read_text())["inputs"][0]


def figure(page, name):
    return int(page.locator(f"[data-figure={name}] dd").inner_text().replace(",", ""))


def test_it_loads_without_a_word_on_the_console_and_asks_no_other_host(server, visit, until):
    visited = visit(server.url)
    page = visited.page
    page.wait_for_timeout(2500)
    page.locator(".samples button").first.click()
    until(page, "document.querySelector('.answer b').textContent === '0'")
    assert visited.problems == []
    assert visited.hosts == {server.url.removeprefix("http://")}
    assert page.locator("#state").inner_text() == "ready"
    assert page.locator("#alert").is_hidden()


def less(dense, ours):
    return f"\N{MINUS SIGN}{100 * (1 - ours / dense):.1f}%"


def test_it_shows_the_figures_of_stats(server, visit):
    httpx.post(f"{server.url}/predict", json={"inputs": [ROW, ROW]}, timeout=60)
    page = visit(server.url).page
    document = server.stats()
    report = document["models"][0]
    text = page.locator("[data-model=digits]").inner_text()
    model, adds = report["totals"]["model"], report["multiply_adds_per_row"]
    figures = dict(
        zip(page.locator(".figures dt").all_inner_texts(), page.locator(".figures dd").all_inner_texts(), strict=True)
    )
    assert figures["learnable parameters"] == less(model["dense"], model["learnable"])
    assert figures["parameters with fixed ones"] == less(model["dense"], model["learnable_and_fixed"])
    assert figures["multiply-adds per row"] == less(adds["dense"], adds["planned"])
    # the shipped file's size, three digits of it
    assert f"{report['bytes']['file_bytes'] / 1e3:.0f} kB" in text
    accuracy = report["training"]["metrics"]["test_accuracy"]
    assert next(value for name, value in figures.items() if "accuracy" in name) == f"{100 * accuracy:.1f}%"
    assert page.locator(".layer").count() == len(report["layers"])
    for row, layer in zip(page.locator(".layer").all(), report["layers"], strict=True):
        shown, counts = row.inner_text(), layer["parameters"]
        assert layer["name"] in shown
        assert (
            f"{layer['in_features']} → {layer['out_features']}, L={layer['num_terms']}, k={layer['low_rank']}" in shown
        )
        assert less(counts["dense"], counts["learnable"]) in shown
        assert less(counts["dense"], counts["learnable_and_fixed"]) in shown
        label = row.locator(".bar").get_attribute("aria-label")
        assert label == (
            f"learnable {counts['learnable']:,} and fixed {counts['fixed']:,} parameters, dense {counts['dense']:,}"
        )
    assert figure(page, "requests") == report["live"]["requests"]
    assert figure(page, "rows") == report["live"]["rows"]
    assert "CPU" in text
    assert "1 (served)" in text


def test_areas_of_the_picture_are_to_scale(server, visit):
    page = visit(server.url).page
    report = server.stats()["models"][0]
    areas = (
        page.locator(".layer")
        .first.locator("svg")
        .first.evaluate(
            """svg => { const area = r => r.width.baseVal.value * r.height.baseVal.value;
             return Object.fromEntries(["dense", "learnable", "fixed"].map(kind =>
               [kind, [...svg.querySelectorAll("rect." + kind)].reduce((sum, r) => sum + area(r), 0)])); }"""
        )
    )
    layer = report["layers"][0]
    weights = {name: layer["parameters"][name] - (0 if name == "fixed" else 512) for name in areas}
    for name in ("learnable", "fixed"):
        assert areas[name] / areas["dense"] == pytest.approx(weights[name] / weights["dense"], rel=0.02)


def test_charts_follow_the_load(server, visit, until):
    page = visit(server.url).page
    before, began = figure(page, "requests"), time.monotonic()
    for _ in range(40):
        httpx.post(f"{server.url}/predict", json={"inputs": [ROW, ROW]}, timeout=60)
    took = time.monotonic() - began
    until(page, f"+document.querySelector('[data-figure=requests] dd').textContent.replace(',', '') >= {before + 40}")
    charts = {chart.locator("h4").inner_text(): chart for chart in page.locator(".chart").all()}
    assert set(charts) == {"Requests", "Latency, p50", "Rows per run"}
    assert charts["Rows per run"].locator("svg").get_attribute("aria-label").endswith("at most 2")
    assert charts["Latency, p50"].locator("path.upper").count() >= 1
    label = charts["Requests"].locator("svg").get_attribute("aria-label")
    rate = float(re.search(r"at most ([\d.]+)/s", label)[1])
    assert 20 / (took + 3) < rate <= 40, "the largest rate is at least half of the mean one"


def test_failures_are_shown_by_reason(server, visit):
    httpx.post(f"{server.url}/predict", json={"inputs": [[1]]}, timeout=60)
    page = visit(server.url).page
    assert "InvalidRequestError" in page.locator(".counts .failing").inner_text()


def test_a_model_that_is_not_batched_says_why(start, visit, tmp_path):
    from onnx import TensorProto, helper, save

    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "scale", "zero"], name="quantize"),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"]),
    ]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3]) for name in "xy")
    model = helper.make_model(
        helper.make_graph(nodes, "g", [x], [y]), opset_imports=[helper.make_opsetid("", 21)], ir_version=10
    )
    for name, settings in (("scaled", ""), ("chosen", 'batching = "off"\n[session]\ngraph_optimization = "basic"')):
        (tmp_path / name / "1").mkdir(parents=True)
        save(model, tmp_path / name / "1" / "model.onnx")
        (tmp_path / name / "panther.toml").write_text(settings)
    with start(tmp_path) as server:
        page = visit(server.url, ["scaled", "chosen"]).page
        scaled, chosen = (page.locator(f"[data-model={name}]") for name in ("scaled", "chosen"))
        assert "Each request runs separately: node 'quantize' computes its scale over the whole" in scaled.inner_text()
        assert scaled.locator(".pill.warn").all_inner_texts() == ["not batched"]
        assert "set in panther.toml" in chosen.inner_text()
        assert "Graph optimization basic" in " ".join(chosen.inner_text().split())
        assert chosen.locator(".pill.warn").count() == 0


def test_a_model_without_a_card_says_what_is_unknown_and_can_be_asked(start, visit, tmp_path, until):
    from onnx import TensorProto, helper, save

    node = helper.make_node("Mul", ["a", "b"], ["c"])
    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3]) for name in "abc"]
    graph = helper.make_graph([node], "g", tensors[:2], tensors[2:])
    (tmp_path / "product" / "1").mkdir(parents=True)
    path = tmp_path / "product" / "1" / "model.onnx"
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    with start(tmp_path) as server:
        visited = visit(server.url)
        page = visited.page
        shown = page.locator("[data-model=product]").inner_text()
        assert "An ONNX file without a model card" in shown
        assert "Requests share runs: each row of the outputs depends only on the same row of the inputs." in shown
        assert "batched" in page.locator("h3 .pill").all_inner_texts()
        assert "%" not in page.locator(".figures").inner_text()
        page.locator("textarea").fill('{"inputs": {"a": [[1, 2, 3]], "b": [[4, 5, 6]]}}')
        page.get_by_role("button", name="Ask").click()
        page.locator(".numbers dd", has_text="18").wait_for()
        assert page.locator(".numbers dd").all_inner_texts() == ["4", "10", "18"]
        assert json.loads(page.locator(".result > details > pre").first.text_content())["outputs"] == {
            "c": [[4, 10, 18]]
        }
        page.locator("textarea").fill('{"inputs": [1]}')
        page.get_by_role("button", name="Ask").click()
        page.locator(".answer", has_text="several inputs").wait_for()


def test_reloading_and_versions(start, visit, tmp_path, until):
    shutil.copytree(ROOT / "models" / "digits" / "1", tmp_path / "digits" / "1")
    with start(tmp_path, "--model-control", "explicit") as server:
        page = visit(server.url).page
        assert "version 1" in page.locator("header .pill").all_inner_texts()
        shutil.copytree(tmp_path / "digits" / "1", tmp_path / "digits" / "2")
        page.get_by_role("button", name="Reload from disk").click()
        page.get_by_text("Loaded.").wait_for()
        until(page, "document.querySelector('.model > header').textContent.includes('version 2')")
        # in one go: the page replaces the rows at each reading
        rows = page.evaluate("[...document.querySelectorAll('.card > .block tbody tr')].map((row) => row.innerText)")
        assert [row.split()[0] for row in rows] == ["2", "1"]
        page.locator(".samples button").nth(8).click()
        until(page, "document.querySelector('.answer span').textContent.includes('version 2')")
        assert page.locator(".answer b").inner_text() == "4"
        page.get_by_role("button", name="Benchmark against dense").click()
        until(page, "/batch 256: .* of dense/.test(document.querySelector('.card > .block output').textContent)")

        (tmp_path / "digits" / "3").mkdir()
        (tmp_path / "digits" / "3" / "model.onnx").write_bytes(b"broken")
        page.get_by_role("button", name="Reload from disk").click()
        until(page, "document.querySelector('.card > .block output').textContent.includes('version 3')")
        until(page, "document.querySelector('.card > .block tbody').textContent.includes('unavailable')")
        page.locator(".reason", has_text="Version 3").wait_for()
        assert page.locator("body").inner_text().count("INVALID_PROTOBUF") == 1 + page.locator(
            ".card > .block output"
        ).inner_text().count("INVALID_PROTOBUF")
        assert "version 2" in page.locator("header .pill").all_inner_texts()


def test_where_control_is_off_it_says_so(server, visit):
    page = visit(server.url).page
    assert page.get_by_role("button", name="Reload from disk").is_hidden()
    assert page.get_by_text("PANTHER_MODEL_CONTROL=explicit").is_visible()


def test_it_survives_a_restart_of_the_server(start, visit, until):
    with start(ROOT / "models") as server:
        page = visit(server.url).page
        page.locator(".samples button").nth(4).click()
        until(page, "document.querySelector('.answer b').textContent === '2'")
        server.stop()
        until(page, "document.querySelector('#state').textContent === 'not reachable'")
        assert page.get_by_text("The server does not respond").is_visible()
        server.start()
        until(page, "document.querySelector('#state').textContent === 'ready'")
        assert page.locator("#alert").is_hidden()
        page.locator(".samples button").nth(6).click()
        until(page, "document.querySelector('.answer b').textContent === '3'")
        until(page, "document.querySelector('[data-figure=requests] dd').textContent === '1'")


@pytest.mark.parametrize("viewport", [DESKTOP, PHONE, {"width": 320, "height": 640}], ids=["desktop", "phone", "small"])
def test_nothing_hangs_over_the_edge(server, visit, viewport):
    page = visit(server.url, viewport=viewport).page
    page.locator(".samples button").first.wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
    for selector in (".pad", ".bars", ".figures", ".charts"):
        box = page.locator(selector).first.bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= viewport["width"]


@pytest.mark.parametrize("color_scheme", ["light", "dark"])
@pytest.mark.parametrize("viewport", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_axe_finds_nothing(server, visit, viewport, color_scheme, until):
    # Loaded past the page's own policy, which would refuse a script from elsewhere.
    page = visit(server.url, viewport=viewport, color_scheme=color_scheme, bypass_csp=True).page
    from axe_playwright_python.sync_playwright import Axe

    page.locator(".samples button").nth(3).click()
    until(page, "document.querySelector('.answer b').textContent === '1'")
    violations = Axe().run(page).response["violations"]
    assert [(found["id"], [node["html"] for node in found["nodes"]]) for found in violations] == []


def test_it_can_be_used_by_keyboard_alone(server, visit, until):
    page = visit(server.url).page
    page.locator(".samples button").first.wait_for()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.className") == "pad":
            break
    assert page.evaluate("document.activeElement.className") == "pad"
    # A 1: pen down, twenty steps down, pen up.
    page.keyboard.press("Space")
    for _ in range(20):
        page.keyboard.press("ArrowDown")
    page.keyboard.press("Space")
    until(page, "document.querySelector('.answer b').textContent === '1'")
    page.keyboard.press("Escape")
    until(page, "document.querySelector('.answer b').textContent === '?'")
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    until(page, "document.querySelector('.answer b').textContent === '0'")


def test_the_policy_is_strict_and_holds(server, visit):
    for path in ("/", "/dashboard/main.js", "/dashboard/samples/digits.json"):
        answer = httpx.get(server.url + path, timeout=60)
        policy = dict(part.strip().split(" ", 1) for part in answer.headers["content-security-policy"].split(";"))
        assert policy["default-src"] == "'none'"
        assert {value for name, value in policy.items() if name.endswith("-src") and name != "default-src"} == {
            "'self'"
        }
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-cache"
    visited = visit(server.url)
    ran = visited.page.evaluate(
        """() => { const script = document.createElement("script"); script.textContent = "window.ran = true";
             document.body.append(script); return window.ran === true; }"""
    )
    assert not ran
    assert any("Content Security Policy" in problem for problem in visited.problems)


def test_it_shows_the_error_of_a_regression_in_its_unit(start, visit, tmp_path):
    card = build.sketched_card(
        outputs=[{"name": "logits", "kind": "regression", "unit": "mg/dL"}],
        training={
            "metrics": {"test_r2": 0.75, "test_rmse": 12.5, "test_mae": 9.0},
            "dense_twin_metrics": {"test_r2": 0.8, "test_rmse": 11.25, "test_mae": 8.5},
        },
    )
    build.put(tmp_path, build.Tiny().graph(), "m", card=card)
    with start(tmp_path) as server:
        page = visit(server.url).page
        page.locator(".figures dt").first.wait_for()
        names = page.locator(".figures dt").all_inner_texts()
        figures = dict(zip(names, page.locator(".figures dd").all_inner_texts(), strict=True))
        assert figures["test rmse, dense 11.3 mg/dL"] == "12.5 mg/dL"
        assert "regression, in mg/dL" in page.locator("[data-model=m]").inner_text()


@contextmanager
def proxied(url, prefix):
    """A proxy that serves ``url`` below a path prefix, which it takes off."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            if not self.path.startswith(f"{prefix}/"):
                self.send_error(404)
                return
            headers = {"content-type": self.headers.get("content-type", "")} if body else {}
            answer = httpx.request(
                self.command, url + self.path.removeprefix(prefix), content=body, headers=headers, timeout=60
            )
            self.send_response(answer.status_code)
            for name in ("content-type", "content-security-policy"):
                if name in answer.headers:
                    self.send_header(name, answer.headers[name])
            self.send_header("content-length", str(len(answer.content)))
            self.end_headers()
            self.wfile.write(answer.content)

        do_POST = do_GET

        def log_message(self, *_):
            """Nothing."""

    proxy = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=proxy.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{proxy.server_port}{prefix}/"
    finally:
        proxy.shutdown()
        thread.join()
        proxy.server_close()


def test_it_works_below_a_path_prefix(server, visit):
    with proxied(server.url, "/team/panther") as url:
        visited = visit(url)
        page = visited.page
        page.locator(".samples button").nth(4).click()
        page.locator(".answer b", has_text="2").wait_for()
        page.locator(".snippets summary").first.click()
        assert f"'{url}models/digits/predict?top_k=10'" in page.locator(".snippets pre").first.text_content()
        assert visited.problems == []
