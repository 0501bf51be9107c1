// The list of models: a filter by name, a filter by state, and one row per model.

import { h } from "./dom.js";
import * as format from "./format.js";
import { ALL, state } from "./states.js";

/** Rows ordered by state, broken ones first; rows that do not match the filters are hidden. */
export class ModelList {
  constructor(element) {
    this.element = element;
    this.wanted = null;
    this.search = h("input", {
      type: "search",
      placeholder: "Filter by name",
      "aria-label": "Filter models by name",
      spellcheck: "false",
      oninput: () => this.filter(),
    });
    this.states = h("div", { class: "choice", role: "group", "aria-label": "Filter models by state" });
    this.none = h("p", { class: "empty" }, "");
    this.tools = h("div", { class: "tools" }, h("h2", {}, "Models"), this.search, this.states);
    this.rows = h("div", { class: "list" });
    this.element.replaceChildren(this.tools, this.rows, this.none);
    this.views = [];
  }

  /** Show these views; each has a `name`, an `element` and the result of `judge`. */
  update(views) {
    const order = (view) => ALL.indexOf(view.judged.key);
    this.views = views.toSorted((a, b) => order(a) - order(b) || a.name.localeCompare(b.name));
    const elements = this.views.map((view) => view.element);
    const same = elements.length === this.rows.children.length && elements.every((one, at) => one === this.rows.children[at]);
    // Moving a focused element takes the focus away.
    if (!same) {
      const focused = document.activeElement;
      this.rows.replaceChildren(...elements);
      if (this.rows.contains(focused)) focused.focus({ preventScroll: true });
    }
    this.tools.hidden = views.length < 2;
    this.showStates();
    this.filter();
  }

  showStates() {
    const counts = new Map(ALL.map((key) => [key, this.views.filter((view) => view.judged.key === key).length]));
    if (this.wanted && !counts.get(this.wanted)) this.wanted = null;
    const signature = JSON.stringify([this.wanted, ...counts]);
    if (signature === this.signature) return;
    this.signature = signature;
    const button = (key, name, count) =>
      h(
        "button",
        { type: "button", "data-state": key ?? "all", "aria-pressed": String(key === this.wanted), onclick: () => this.choose(key) },
        `${name} ${format.integer(count)}`,
      );
    const focused = document.activeElement?.dataset?.state;
    const had = this.states.contains(document.activeElement);
    this.states.replaceChildren(
      button(null, "All", this.views.length),
      ...ALL.filter((key) => counts.get(key)).map((key) => button(key, state(key).name, counts.get(key))),
    );
    if (had) this.states.querySelector(`[data-state="${focused}"]`)?.focus();
  }

  choose(key) {
    this.wanted = key;
    this.showStates();
    this.filter();
  }

  filter() {
    const text = this.search.value.trim().toLowerCase();
    let shown = 0;
    for (const view of this.views) {
      const fits = view.name.toLowerCase().includes(text) && (this.wanted === null || view.judged.key === this.wanted);
      view.element.hidden = !fits;
      shown += fits;
    }
    this.none.hidden = shown > 0;
    this.none.textContent = this.views.length ? `No model matches “${this.search.value.trim()}”.` : "No model is served.";
  }
}

