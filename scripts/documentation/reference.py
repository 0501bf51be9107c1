"""Reference pages generated from their sources, one function per page."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
API = {
    "panther": "the package: the most used names",
    "panther.nn": "the layers",
    "panther.nn.functional": "the formulas of the layers",
    "panther.efficiency": "parameter counts, and sizes to start from",
    "panther.sketch": "the fixed random matrices",
    "panther.analysis": "reports on layers and models",
    "panther.train": "training",
    "panther.compression": "compression of trained models to a budget",
    "panther.convert": "conversion of trained models",
    "panther.export": "export to ONNX",
    "panther.quantize": "quantization of trained models",
    "panther.checkpoint": "compact checkpoints",
    "panther.svd": "singular value decompositions",
    "panther.linalg": "randomized SVD and CQRRPT, by the signatures of panther-ml",
    "panther_client": "the Python client of the server",
}
"""The public modules, in the order of the site, each with a description."""


def cell(text: object) -> str:
    """Text for a cell of a table."""
    return str(text).replace("|", "\\|").replace("\n", " ")


def table(head: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """A Markdown table."""
    titles = list(head)
    lines = [titles, ["---"] * len(titles), *([cell(value) for value in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def api_pages() -> dict[str, str]:
    """A page per public module; mkdocstrings fills it from the docstrings, without importing anything."""
    pages = {"reference/api/index.md": _api_index()}
    for module in API:
        options = "" if module != "panther" else "    options:\n      members: false\n"
        pages[f"reference/api/{module}.md"] = f"# `{module}`\n\n::: {module}\n{options}"
    return pages


def _api_index() -> str:
    rows = ((f"[`{module}`]({module}.md)", what) for module, what in API.items())
    intro = (
        "From the docstrings of the code. Submodules load on first use; `import panther` alone does not import torch."
    )
    return f"# The Python API\n\n{intro}\n\n{table(('module', 'what it has'), rows)}\n"


def settings_page() -> str:
    """Every setting of the server with its rule, from ``app.config.settings.Settings``."""
    from app.config.settings import ENV_PREFIX, Settings

    schema = Settings.model_json_schema()["properties"]
    rows = []
    for name, field in Settings.model_fields.items():
        default = schema[name].get("default")
        shown = "none" if default is None else f"`{json.dumps(default)}`".replace('"', "")
        flag = "--" + name.replace("_", "-")
        names = f"`{ENV_PREFIX}{name.upper()}`<br>`{flag}`"
        rows.append((names, _rule(schema[name]), shown, field.description))
    return (
        "# Settings\n\nFrom `app.config.settings`. [Settings of the server](../settings.md) says how to set them and "
        "when to change them. A key of the TOML file is the flag without dashes, with underscores.\n\n"
        f"{table(('variable, flag', 'value', 'default', 'meaning'), rows)}\n"
    )


def _rule(schema: dict[str, Any]) -> str:
    kinds = [one for one in schema.get("anyOf", [schema]) if one.get("type") != "null"]
    return " or ".join(_kind(one) for one in kinds)


def _kind(schema: dict[str, Any]) -> str:
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    kind = {"integer": "whole number", "number": "number", "string": "text", "boolean": "true or false"}
    name = "path" if schema.get("format") == "path" else kind.get(str(schema.get("type")), str(schema.get("type")))
    bounds = [
        text.format(schema[key])
        for key, text in (
            ("minimum", "at least {}"),
            ("exclusiveMinimum", "over {}"),
            ("maximum", "at most {}"),
            ("minLength", "at least {} character"),
        )
        if key in schema
    ]
    return ", ".join([name, *bounds])


def card_page() -> str:
    """The fields of the model card, from its JSON schema."""
    schema = json.loads((ROOT / "docs" / "model-card.schema.json").read_text(encoding="utf-8"))
    parts = [
        "# The model card",
        f"{schema['description']} The schema itself: [model-card.schema.json](../model-card.schema.json).",
        table(("field", "", "value", "meaning"), _fields(schema)),
    ]
    for name, definition in schema["$defs"].items():
        parts.append(f"## `{name}`")
        if "description" in definition:
            parts.append(definition["description"])
        if "properties" in definition:
            parts.append(table(("field", "", "value", "meaning"), _fields(definition)))
        else:
            parts.append(_value(definition))
    return "\n\n".join(parts) + "\n"


def _fields(schema: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str, str, str]]:
    for name, value in schema.get("properties", {}).items():
        needed = "required" if name in schema.get("required", ()) else ""
        yield f"`{prefix}{name}`", needed, _value(value), value.get("description", "")
        inner = value.get("items", value)
        if "properties" in inner:
            yield from _fields(inner, f"{prefix}{name}{'[]' if inner is not value else ''}.")


def _value(schema: dict[str, Any]) -> str:
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "enum" in schema:
        return ", ".join(f"`{json.dumps(value)}`" for value in schema["enum"])
    kind = schema.get("type", "any")
    kind = " or ".join(kind) if isinstance(kind, list) else str(kind)
    if kind == "array":
        return f"array of {_value(schema.get('items', {}))}"
    additional = schema.get("additionalProperties")
    if kind == "object" and isinstance(additional, dict):
        return f"object of {_value(additional)}"
    rules = [f"{text} {schema[key]}" for key, text in _RULES.items() if key in schema]
    return ", ".join([kind, *rules])


_RULES = {
    "minimum": "at least",
    "exclusiveMinimum": "over",
    "maximum": "at most",
    "format": "as",
    "pattern": "like",
    "minItems": "items at least",
    "minLength": "characters at least",
}


def http_page() -> str:
    """Every path with its parameters, bodies and responses, from the application's OpenAPI schema."""
    from app.application import create_app
    from app.config.settings import Settings

    document = create_app(Settings(model_dir=ROOT / "models", model_control="explicit")).openapi()
    parts = [
        "# HTTP paths",
        "From the server's own OpenAPI schema, which it serves at `/openapi.json` and shows at `/docs`. "
        "[The HTTP interface](../http.md) explains it.",
    ]
    by_tag: dict[str, list[str]] = {}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            tag = (operation.get("tags") or ["other"])[0]
            by_tag.setdefault(tag, []).append(_operation(method.upper(), path, operation))
    for tag, operations in by_tag.items():
        parts += [f"## {tag}", *operations]
    return "\n\n".join(parts) + "\n"


def _operation(method: str, path: str, operation: dict[str, Any]) -> str:
    parts = [f"### `{method} {path}`", f"{operation['summary'].rstrip('.')}."]
    description = operation.get("description", "").strip()
    if description and description.rstrip(".") != operation["summary"].rstrip("."):
        parts.append(description)
    parameters = [
        (f"`{one['name']}`", one["in"], "required" if one.get("required") else "", one.get("description", ""))
        for one in operation.get("parameters", ())
    ]
    if parameters:
        parts.append(table(("parameter", "in", "", "meaning"), parameters))
    content = operation.get("requestBody", {}).get("content", {})
    if content:
        parts.append("Body: " + ", ".join(f"`{kind}`" for kind in content) + ".")
        parts += _examples(content)
    answers = []
    for status, answer in operation.get("responses", {}).items():
        kinds = ", ".join(f"`{kind}`" for kind in answer.get("content", {}))
        answers.append((status, answer.get("description", "").replace("\n", " "), kinds))
    parts.append(table(("status", "when", "body"), answers))
    parts += _examples(operation.get("responses", {}).get("200", {}).get("content", {}))
    return "\n\n".join(parts)


def _examples(content: dict[str, Any]) -> list[str]:
    body = content.get("application/json", {})
    example = body.get("example")
    if example is None and body.get("examples"):
        example = next(iter(body["examples"].values())).get("value")
    if example is None:
        return []
    text = json.dumps(example, indent=2, ensure_ascii=False)
    if len(text) > 1500:
        text = text[:1500].rsplit("\n", 1)[0] + "\n…"
    return [f"```json\n{text}\n```"]


def metrics_page() -> str:
    """Every metric that a server with the bundled models exports after a few requests, from a scrape."""
    from prometheus_client.parser import text_string_to_metric_families

    rows = []
    # On a separate thread, because the process that builds the pages may run an event loop.
    with ThreadPoolExecutor(1) as pool:
        scrape = pool.submit(lambda: asyncio.run(_scrape())).result()
    for family in text_string_to_metric_families(scrape):
        labels = sorted({label for sample in family.samples for label in sample.labels} - {"le"})
        suffix = "_total" if family.type == "counter" else ""
        rows.append(
            (f"`{family.name}{suffix}`", family.type, ", ".join(f"`{one}`" for one in labels), family.documentation)
        )
    return (
        "# Metrics\n\nFrom a scrape of the server after one successful and one failed request. "
        "[Metrics](../metrics.md) describes each of them, with queries and alerts.\n\n"
        + table(("metric", "kind", "labels", "meaning"), sorted(rows))
        + "\n"
    )


async def _scrape() -> str:
    import httpx

    from app.application import create_app
    from app.config.settings import Settings

    application = create_app(Settings(model_dir=ROOT / "models", num_threads=1))
    transport = httpx.ASGITransport(app=application)
    async with (
        application.router.lifespan_context(application),
        httpx.AsyncClient(transport=transport, base_url="http://reference") as client,
    ):
        while (await client.get("/health/ready")).status_code != 200:
            await asyncio.sleep(0.02)
        digit = json.loads((ROOT / "examples" / "digit.json").read_text(encoding="utf-8"))
        (await client.post("/predict", json=digit)).raise_for_status()
        await client.post("/predict", json={"inputs": [[0.5]]})
        await client.post("/models/unknown/predict", json=digit)
        return (await client.get("/metrics")).text


def cli_page() -> str:
    """Every command of ``panther`` with its options, from the program's help."""
    import typer

    from panther.cli.commands import app as program

    command = typer.main.get_command(program)
    parts = ["# The `panther` command", "From `panther --help` and that of each command."]
    for name, sub in sorted(command.commands.items()):  # type: ignore[attr-defined]
        parts += [f"## `panther {name}`", _plain(sub.help or "")]
        rows = []
        for parameter in sub.params:
            if parameter.name == "help":
                continue
            option = parameter.param_type_name == "option"
            shown = ", ".join(f"`{one}`" for one in parameter.opts) if option else f"`{parameter.name.upper()}`"
            default = "" if parameter.default in (None, False, ()) or callable(parameter.default) else parameter.default
            needed = "required" if parameter.required else (f"`{default}`" if default != "" else "")
            rows.append((shown, needed, _plain(getattr(parameter, "help", "") or "")))
        if rows:
            parts.append(table(("argument", "default", "meaning"), rows))
        if name == "serve":
            parts.append("Its flags are the [settings](settings.md).")
    return "\n\n".join(parts) + "\n"


def _plain(text: str) -> str:
    return re.sub(r"[ \t]*\n(?!\n)[ \t]*", " ", text).strip()


EXAMPLES = {
    "tutorial.py": "The tutorial",
    "compressed_digits.py": "A trained network compressed: the shipped model digits-small",
    "table_classifier.py": "A table of data, from CSV to a served model",
    "convert_encoder.py": "Converting a transformer encoder",
    "custom_loop.py": "A custom training loop",
    "ask.py": "The client",
    "ask_grpc.py": "The client over gRPC",
    "serve_any_model.py": "Serving any ONNX model",
}


def examples_page() -> str:
    """The scripts of examples/, unchanged.

    Raises:
        ValueError: A script has no heading here, or a heading has no script.
    """
    found = {path.name for path in (ROOT / "examples").glob("*.py")}
    if found != set(EXAMPLES):
        raise ValueError(f"EXAMPLES and examples/ differ in: {', '.join(sorted(found ^ set(EXAMPLES)))}")
    parts = ["# Examples", "Scripts in `examples/` that run unchanged; the tests run them."]
    for name, title in EXAMPLES.items():
        code = (ROOT / "examples" / name).read_text(encoding="utf-8").rstrip()
        parts += [f"## {title}", f"`examples/{name}`", f"```python\n{code}\n```"]
    return "\n\n".join(parts) + "\n"


def tutorial_page() -> str:
    """The tutorial of panther-ml, unchanged, for reading in a browser."""
    text = (ROOT / "docs" / "tutorial.rst").read_text(encoding="utf-8").rstrip()
    intro = (
        "The tutorial of the public package, unchanged. The tests run every code block of it against this library, "
        "without edits. It has two errors that this library avoids: its count omits a bias, and its starting "
        "points contradict its own rule of thumb ([Counting honestly](counting.md), [Choose num_terms and "
        "low_rank](choosing.md)). The corrected script is [examples/tutorial.py](examples.md#the-tutorial)."
    )
    return f"# The tutorial of panther-ml\n\n{intro}\n\n````rst\n{text}\n````\n"


def pages() -> dict[str, str]:
    """All generated pages, by their path below docs/."""
    return {
        "tutorial.md": tutorial_page(),
        "examples.md": examples_page(),
        **api_pages(),
        "reference/cli.md": cli_page(),
        "reference/http.md": http_page(),
        "reference/settings.md": settings_page(),
        "reference/model-card.md": card_page(),
        "reference/metrics.md": metrics_page(),
    }
