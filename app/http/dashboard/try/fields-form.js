// A labelled field per column, filled in with a sample row of the card.

import { h } from "../dom.js";
import { Answer } from "./answer.js";

let forms = 0;

/** The field of a column, and the conversion of its value to JSON: null if it is empty. */
function fieldOf({ type, categories }, id) {
  if (type === "category") {
    const options = categories.map((category) => h("option", { value: category }, category));
    const field = h("select", { id }, ...options);
    return { field, read: () => field.value };
  }
  if (type === "boolean") {
    const field = h("select", { id }, h("option", { value: "false" }, "false"), h("option", { value: "true" }, "true"));
    return { field, read: () => field.value === "true" };
  }
  if (type === "text") {
    const field = h("input", { id, type: "text", spellcheck: "false" });
    return { field, read: () => field.value };
  }
  const field = h("input", { id, type: "number", step: type === "integer" ? "1" : "any", inputmode: "decimal" });
  return { field, read: () => (field.value === "" ? null : Number(field.value)) };
}

/** Fields by column, the samples of the card, and the answer. */
export class FieldsForm {
  constructor(model, { columns, samples }) {
    forms += 1;
    this.columns = columns;
    this.fields = columns.map((column, index) => fieldOf(column, `field-${forms}-${index}`));
    this.answer = new Answer(model, samples.length ? "The fields hold a real row: run or change it." : "The card has no sample row: fill in the fields.");
    const labelled = columns.map((column, index) => {
      const { field } = this.fields[index];
      const unit = column.unit && h("small", {}, ` ${column.unit}`);
      return h("div", { title: column.description }, h("label", { for: field.id }, column.name, unit), field);
    });
    const sample = (row, index) =>
      h("button", { type: "button", onclick: () => this.fill(row) }, samples.length > 1 ? `Sample ${index + 1}` : "Sample row");
    this.element = h(
      "form",
      { class: "row-form", onsubmit: (event) => this.ask(event), novalidate: true },
      h("div", { class: "fields", tabindex: columns.length > 24 ? "0" : null, role: "group", "aria-label": "Columns" }, ...labelled),
      h("div", { class: "actions" }, h("button", { class: "primary" }, "Ask"), ...samples.slice(0, 8).map(sample)),
      this.answer.element,
    );
    if (samples.length) this.fill(samples[0]);
  }

  fill(row) {
    this.fields.forEach(({ field }, index) => (field.value = String(row[index])));
    this.answer.clear();
  }

  ask(event) {
    event.preventDefault();
    const record = Object.fromEntries(this.columns.map((column, index) => [column.name, this.fields[index].read()]));
    const missing = Object.values(record).includes(null);
    this.answer.ask({ body: JSON.stringify({ inputs: [record] }), query: missing ? { nan: "allow" } : {} });
  }
}
