"""The generated pages hold all there is: compared with the things themselves, not with how the pages are made."""

from __future__ import annotations

import ast
import json
import re

import pytest
import reference


@pytest.fixture(scope="module")
def pages():
    return reference.pages()


def test_every_public_name_is_on_the_page_of_its_module(root):
    for module in reference.API:
        package = root / module.replace(".", "/")
        path = package / "__init__.py" if package.is_dir() else package.with_suffix(".py")
        tree = ast.parse(path.read_text(encoding="utf-8"))
        assert ast.get_docstring(tree), module
    import panther

    submodules = {f"panther.{name}" for name in panther._SUBMODULES}
    left_out = {"panther.bits"}  # how signs are packed: used by checkpoints and the export, not by people
    assert submodules - set(reference.API) == left_out


def test_every_setting_is_there(pages):
    from app.config.settings import Settings

    for name in Settings.model_fields:
        flag = "--" + name.replace("_", "-")
        assert f"| `PANTHER_{name.upper()}`<br>`{flag}` |" in pages["reference/settings.md"]


def test_every_path_is_there(pages):
    from app.application import create_app
    from app.config.settings import Settings

    for path, methods in create_app(Settings()).openapi()["paths"].items():
        for method in methods:
            assert f"### `{method.upper()} {path}`" in pages["reference/http.md"]


def test_every_field_of_the_card_is_there(pages, root):
    schema = json.loads((root / "docs" / "model-card.schema.json").read_text(encoding="utf-8"))
    page = pages["reference/model-card.md"]
    for definition in (schema, *schema["$defs"].values()):
        for name in definition.get("properties", {}):
            assert f"| `{name}` |" in page, name
    for name in schema["$defs"]:
        assert f"## `{name}`" in page


def test_every_metric_of_the_guide_is_in_the_reference_and_the_other_way_round(pages, root):
    told = set(re.findall(r"`(panther_\w+)`", (root / "docs" / "metrics.md").read_text(encoding="utf-8")))
    scraped = set(re.findall(r"^\| `(panther_\w+)`", pages["reference/metrics.md"], re.MULTILINE))
    assert len(scraped) > 20
    assert scraped <= told
    gpu_alone = {name for name in told - scraped if "cuda" in name or "gpu" in name or "device" in name}
    # names of samples and of recording rules stand in the guide's queries too
    families = {re.sub(r"_(total|bucket|count|sum|info)$", "", name) for name in scraped}
    for name in told - scraped - gpu_alone:
        assert re.sub(r"_(total|bucket|count|sum|info)$", "", name) in families, name


def test_every_command_is_there(pages):
    import typer

    from panther.cli.commands import app

    for name, command in typer.main.get_command(app).commands.items():
        assert f"## `panther {name}`" in pages["reference/cli.md"]
        for parameter in command.params:
            if parameter.param_type_name == "option" and parameter.name != "help":
                assert f"`{parameter.opts[0]}`" in pages["reference/cli.md"]


def test_every_example_has_its_heading(pages, root):
    for path in (root / "examples").glob("*.py"):
        assert f"`examples/{path.name}`" in pages["examples.md"]


def test_links_from_pages_at_the_root_are_turned_to_the_site():
    import hooks

    text = "[a](docs/math.md#gradients) [b](SECURITY.md) [c](benchmarks/run.py) [d](https://x.example/y) [e](#here)"
    assert hooks.for_the_site(text) == "[a](math.md#gradients) [b](security.md) c [d](https://x.example/y) [e](#here)"
