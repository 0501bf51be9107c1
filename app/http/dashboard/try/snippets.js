// A request as a command line for curl and as a program in Python. An API key stays in the environment.

import * as api from "../api.js";
import { choice, h } from "../dom.js";

const LONGEST = 100_000; // of an argument; Linux limits it to 128 KiB
const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

/** A JSON value as a Python literal. */
export function literal(value) {
  if (value === null) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (Array.isArray(value)) return `[${value.map(literal).join(", ")}]`;
  if (typeof value === "object") {
    return `{${Object.entries(value).map(([key, inner]) => `${JSON.stringify(key)}: ${literal(inner)}`).join(", ")}}`;
  }
  return JSON.stringify(value);
}

/** The request as a command line. */
export function curl(model, { body, type, query }) {
  const key = api.keyed() ? ' -H "Authorization: Bearer $PANTHER_API_KEY"' : "";
  const data = body.length > LONGEST ? "@body" : quoted(body);
  return `curl -s ${quoted(api.address(model, query))}${key} \\\n  -H ${quoted(`Content-Type: ${type}`)} --data-binary ${data}`;
}

/** The request as a program; `make` are lines that set `body`, for a body too long for a literal. */
export function python(model, { body, type, query, make }) {
  const isJson = type === "application/json";
  let lines = make;
  try {
    lines ??= [isJson ? `body = ${literal(JSON.parse(body))}` : `body = ${JSON.stringify(body)}`];
  } catch {
    lines = [`body = ${JSON.stringify(body)}`];
  }
  const headers = [`"Content-Type": "${type}"`, api.keyed() && '"Authorization": f"Bearer {os.environ[\'PANTHER_API_KEY\']}"'].filter(Boolean);
  const data = isJson && (make || !lines[0].startsWith('body = "')) ? "json.dumps(body).encode()" : "body.encode()";
  return [
    "import json",
    api.keyed() && "import os",
    "import urllib.request",
    "",
    ...lines,
    "request = urllib.request.Request(",
    `    "${api.address(model, query)}",`,
    `    ${data},`,
    `    {${headers.join(", ")}},`,
    ")",
    "print(json.load(urllib.request.urlopen(request)))",
  ]
    .filter((line) => line !== false)
    .join("\n");
}

/** "Copy as": the last request, shown for copying by hand if the browser forbids the clipboard. */
export class Snippets {
  constructor(model) {
    this.model = model;
    this.kind = 0;
    this.text = h("pre", { tabindex: "0", "aria-label": "The request" });
    this.said = h("output", {}, "");
    this.element = h(
      "details",
      { class: "snippets" },
      h("summary", {}, "Copy as curl or Python"),
      h(
        "div",
        { class: "actions" },
        choice("Language", ["curl", "Python"], (kind) => {
          this.kind = kind;
          this.draw();
        }),
        h("button", { type: "button", onclick: () => this.copy() }, "Copy"),
        this.said,
      ),
      this.text,
    );
    this.element.hidden = true;
  }

  update(request) {
    this.request = request;
    this.element.hidden = false;
    this.draw();
  }

  draw() {
    this.said.textContent = "";
    this.text.textContent = [curl, python][this.kind](this.model.name, this.request);
  }

  async copy() {
    try {
      await navigator.clipboard.writeText(this.text.textContent);
      this.said.textContent = "Copied.";
    } catch {
      // No clipboard on a page without TLS.
      getSelection().selectAllChildren(this.text);
      this.said.textContent = "Selected: copy it with Ctrl+C.";
    }
  }
}
