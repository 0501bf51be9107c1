// Sends a request and shows the result: bars for classes and labels, numbers with their unit, a table for many rows.

import * as api from "../api.js";
import { h } from "../dom.js";
import * as format from "../format.js";
import { read } from "./reading.js";
import { Snippets } from "./snippets.js";

const MOST_BARS = 12;
const MOST_ROWS = 100;
const MOST_NUMBERS = 16;
const MOST_TEXT = 20_000;

const shown = (value, unit) => {
  const text = typeof value === "number" ? format.short(value) : String(value);
  return unit ? `${text} ${unit}` : text;
};

/** The classes that the server ranks: those of an output with a label for each entry of its last axis. */
const classesOf = (model) =>
  model.outputs.find(
    ({ kind, labels, shape }) => ["logits", "probabilities"].includes(kind) && shape.length === 2 && shape[1] === labels?.length,
  )?.labels ?? [];

/** The result of a request, with the request to copy. */
export class Answer {
  constructor(model, hint) {
    this.model = model;
    this.hint = hint;
    this.asked = 0;
    this.labels = classesOf(model);
    this.best = h("b", {}, "?");
    this.note = h("span", {}, hint);
    this.rows = h("div");
    this.raw = h("pre", { tabindex: "0", "aria-label": "Response as JSON" });
    this.details = h("details", {}, h("summary", {}, "Response as JSON"), this.raw);
    this.snippets = new Snippets(model);
    this.element = h(
      "div",
      { class: "result" },
      h("p", { class: "answer", "aria-live": "polite" }, this.best, this.note),
      this.rows,
      this.details,
      this.snippets.element,
    );
    this.clear();
  }

  clear() {
    this.asked += 1;
    this.best.textContent = "?";
    this.best.hidden = !this.labels.length;
    this.note.textContent = this.hint;
    this.details.hidden = this.snippets.element.hidden = true;
    const order = this.labels.length > 0 && this.labels.length <= MOST_BARS;
    this.rows.replaceChildren(...(order ? [this.bars(this.labels.map((name) => ({ name, part: null })), null)] : []));
  }

  /** Send a request {body, type, query} and show the result; `what` names the input in a word. */
  async ask(request, what = null) {
    const turn = (this.asked += 1);
    const began = performance.now();
    const full = { type: "application/json", ...request, query: this.query(request.query) };
    try {
      const answer = await api.predict(this.model.name, this.model.version, full);
      if (turn !== this.asked) return;
      const took = `version ${answer.version}, ${format.milliseconds(performance.now() - began)} round trip`;
      this.show(read(answer, this.model), [what, took].filter(Boolean).join("; "));
      this.raw.textContent = JSON.stringify(answer, null, 1).replaceAll(/\n\s+(?=[-\d\]])/g, " ").slice(0, MOST_TEXT);
      this.details.hidden = false;
    } catch (error) {
      if (turn !== this.asked) return;
      this.fail(error.message);
    }
    this.snippets.update(full);
  }

  query(query = {}) {
    const wanted = new URLSearchParams(query);
    if (this.labels.length) wanted.set("top_k", String(Math.min(MOST_BARS, this.labels.length)));
    const text = wanted.toString();
    return text && `?${text}`;
  }

  fail(message) {
    this.best.hidden = true;
    this.note.textContent = message;
    this.rows.replaceChildren();
    this.details.hidden = true;
  }

  show(rows, note) {
    this.note.textContent = note;
    this.best.hidden = rows.length !== 1;
    if (rows.length !== 1) {
      this.rows.replaceChildren(rows.length ? this.table(rows) : "An empty response.");
      return;
    }
    const [row] = rows;
    if (row.kind === "numbers") {
      const [first] = row.items;
      this.best.hidden = row.items.length > 1;
      this.best.textContent = shown(first.value, row.unit);
      const items = row.items.slice(0, MOST_NUMBERS).map((item) => h("div", {}, h("dt", {}, item.name), h("dd", {}, shown(item.value, row.unit))));
      const more = row.items.length - items.length;
      this.rows.replaceChildren(
        ...(row.items.length > 1 ? [h("dl", { class: "numbers" }, ...items), more > 0 ? `and ${format.integer(more)} more numbers` : ""] : []),
      );
      return;
    }
    const chosen = row.kind === "labels" ? row.items.filter((item) => item.part > 0.5).map((item) => item.name) : [row.items[0].name];
    this.best.textContent = chosen.join(", ") || "none";
    const inOrder = row.kind === "classes" && this.labels.length > 0 && this.labels.length <= MOST_BARS;
    const order = (item) => this.labels.indexOf(item.name);
    const items = inOrder ? row.items.toSorted((a, b) => order(a) - order(b)) : row.items.slice(0, MOST_BARS);
    this.rows.replaceChildren(this.bars(items, chosen));
  }

  bars(items, chosen) {
    const bar = ({ name, part }) => {
      const fill = h("i");
      fill.style.width = `${100 * (part ?? 0)}%`;
      return h(
        "li",
        { class: chosen?.includes(name) ? "best" : null },
        h("span", {}, name),
        h("span", { class: "track", "aria-hidden": "true" }, fill),
        h("span", {}, part === null ? "" : format.fraction(part)),
      );
    };
    return h("ul", { class: "bars", "aria-label": "Probabilities" }, ...items.map(bar));
  }

  table(rows) {
    const numbers = rows[0].kind === "numbers";
    const names = numbers ? rows[0].items.slice(0, 8).map((item) => item.name) : ["Label", "Probability"];
    const cells = (row) => {
      if (numbers) return row.items.slice(0, 8).map((item) => shown(item.value, row.unit));
      const over = row.kind === "labels" ? row.items.filter((item) => item.part > 0.5) : row.items.slice(0, 1);
      return [over.map((item) => item.name).join(", ") || "none", over.map((item) => format.fraction(item.part)).join(", ")];
    };
    const head = ["Row", ...names].map((name) => h("th", { scope: "col" }, name));
    const body = rows.slice(0, MOST_ROWS).map((row, index) => h("tr", {}, h("th", { scope: "row" }, index + 1), ...cells(row).map((text) => h("td", {}, text))));
    const more = rows.length - body.length;
    return h(
      "div",
      { class: "scroll rows", tabindex: "0", role: "region", "aria-label": `Results of ${this.model.name}` },
      h("table", {}, h("thead", {}, h("tr", {}, ...head)), h("tbody", {}, ...body)),
      more > 0 && h("p", {}, `and ${format.integer(more)} more rows`),
    );
  }
}
