// Rows as CSV, pasted or from a file.

import { h } from "../dom.js";
import { dropZone } from "./drop.js";
import { Answer } from "./answer.js";
import { csv } from "./table.js";

/** CSV text with a line of names, and the results row by row. */
export class CsvForm {
  constructor(model, { columns, samples }) {
    this.answer = new Answer(model, "Paste rows, or drop a file. The first line names the columns, in any order.");
    this.text = h("textarea", { rows: "6", spellcheck: "false", wrap: "off", "aria-label": "Rows as CSV" });
    this.text.value = csv(columns, samples);
    const drop = dropZone("Choose a CSV file", ".csv,text/csv", async (file) => (this.text.value = await file.text()));
    this.element = h(
      "div",
      { class: "row-form" },
      this.text,
      h("div", { class: "actions" }, h("button", { type: "button", class: "primary", onclick: () => this.ask() }, "Ask"), drop),
      this.answer.element,
    );
  }

  ask() {
    this.answer.ask({ body: this.text.value, type: "text/csv", query: /,,|,\s*$/m.test(this.text.value) ? { nan: "allow" } : {} });
  }
}
