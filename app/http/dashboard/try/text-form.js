// Text input for models that take strings.

import { h } from "../dom.js";
import { Answer } from "./answer.js";

/** Whether the only input of a model is one string per row. */
export const takesText = ({ inputs }) =>
  inputs.length === 1 && inputs[0].datatype === "BYTES" && inputs[0].shape.length <= 2 && Math.abs(inputs[0].shape[1] ?? 1) === 1 && !inputs[0].columns;

export class TextForm {
  constructor(model) {
    this.nested = model.inputs[0].shape.length === 2;
    this.answer = new Answer(model, model.inputs[0].description ?? "Enter a text and send it.");
    this.text = h("textarea", { rows: "4", "aria-label": "Text" });
    this.element = h(
      "div",
      { class: "row-form" },
      this.text,
      h("div", { class: "actions" }, h("button", { type: "button", class: "primary", onclick: () => this.ask() }, "Ask")),
      this.answer.element,
    );
  }

  ask() {
    const row = this.nested ? [this.text.value] : this.text.value;
    this.answer.ask({ body: JSON.stringify({ inputs: [row] }) });
  }
}
