// The request as JSON, for every model.

import { h } from "../dom.js";
import { Answer } from "./answer.js";
import { tableOf } from "./table.js";

const MOST = 4096;
const PLACEHOLDERS = { BYTES: "text", BOOL: false };

/** A value of a shape; dynamic dimensions get size 1. */
function filled([size, ...inner], value) {
  if (size === undefined) return value;
  return Array.from({ length: size === -1 ? 1 : size }, () => filled(inner, value));
}

/** A request from the samples of the card, or else zeros that show the shape; null if it would be too long. */
function template(model) {
  const table = tableOf(model);
  if (table?.samples.length) {
    const [row] = table.samples;
    return { real: true, inputs: [Object.fromEntries(table.columns.map((column, index) => [column.name, row[index]]))] };
  }
  const size = ({ shape }) => shape.reduce((product, length) => product * Math.abs(length), 1);
  if (model.inputs.some((input) => size(input) > MOST)) return null;
  const inputs = model.inputs.map((input) => [input.name, filled(input.shape, PLACEHOLDERS[input.datatype] ?? 0)]);
  return { real: false, inputs: Object.fromEntries(inputs) };
}

export class JsonForm {
  constructor(model) {
    const given = template(model);
    const hint = given?.real ? "A real row from the card." : "Zeros show the shape; they are not a real row.";
    this.answer = new Answer(model, given ? hint : "Write a request by the shapes of the inputs.");
    this.body = h("textarea", { spellcheck: "false", rows: "6", "aria-label": "Request as JSON" });
    this.body.value = given ? JSON.stringify({ inputs: given.inputs }) : '{"inputs": …}';
    const shapes = model.inputs.map((input) => `${input.name}: ${input.datatype} [${input.shape.join(", ")}]`).join("; ");
    const units = model.outputs.filter((output) => output.unit).map((output) => `${output.name} in ${output.unit}`);
    this.element = h(
      "div",
      { class: "row-form" },
      h("p", { class: "why" }, [shapes, ...units].join("; ")),
      this.body,
      h("div", { class: "actions" }, h("button", { type: "button", class: "primary", onclick: () => this.ask() }, "Ask")),
      this.answer.element,
    );
  }

  ask() {
    this.answer.ask({ body: this.body.value });
  }
}
