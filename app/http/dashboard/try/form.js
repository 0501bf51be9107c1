// Selects the forms for a model by its inputs: a drawing pad, fields, CSV, text, an image, and always JSON.

import { choice, h } from "../dom.js";
import { CsvForm } from "./csv-form.js";
import { FieldsForm } from "./fields-form.js";
import { ImageForm, takesImages } from "./image-form.js";
import { JsonForm } from "./json-form.js";
import { PadForm, takesDigits } from "./pad-form.js";
import { tableOf } from "./table.js";
import { TextForm, takesText } from "./text-form.js";

/** The forms of a model, the most suitable first: [name, make]. */
function formsOf(model) {
  const table = tableOf(model);
  const json = ["JSON", () => new JsonForm(model)];
  if (takesDigits(model)) return [["Draw", () => new PadForm(model)], json];
  if (takesText(model)) return [["Text", () => new TextForm(model)], json];
  if (table) return [["Fields", () => new FieldsForm(model, table)], ["CSV", () => new CsvForm(model, table)], json];
  if (takesImages(model)) return [["Image", () => new ImageForm(model)], json];
  return [json];
}

/** A form, or a choice of several; each is made when it is first selected, and keeps its contents. */
export function tryForm(model) {
  const forms = formsOf(model);
  const place = h("div");
  const made = new Map();
  const show = (index) => {
    if (!made.has(index)) made.set(index, forms[index][1]().element);
    place.replaceChildren(made.get(index));
  };
  show(0);
  const names = forms.map(([name]) => name);
  return { element: h("div", {}, forms.length > 1 && h("p", { class: "ways" }, choice("Input method", names, show)), place) };
}
