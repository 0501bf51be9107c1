// Savings of a model against its dense twin, its latency at export, and its inputs and outputs.

import { fact, h } from "./dom.js";
import * as format from "./format.js";

/** Quality of the model on held-out rows: its accuracy, or the error of a regression in its unit. */
function quality({ training, outputs }) {
  const metrics = Object.entries(training?.metrics ?? {});
  const error = metrics.find(([key]) => key.endsWith("rmse"));
  const [name, value] = error ?? metrics.find(([key]) => /accuracy|f1/.test(key)) ?? [];
  if (name === undefined) return null;
  const unit = outputs?.find((output) => output.unit)?.unit;
  const shown = error ? (number) => `${format.short(number)}${unit ? ` ${unit}` : ""}` : format.fraction;
  const dense = training.dense_twin_metrics?.[name];
  return fact(`${name.replaceAll("_", " ")}${dense === undefined ? "" : `, dense ${shown(dense)}`}`, shown(value));
}

function figures(report) {
  const model = report.totals?.model;
  const adds = report.multiply_adds_per_row;
  const size = report.bytes;
  const speed = report.latency;
  const less = (dense, ours, what) => fact(what, format.reduction(dense, ours));
  const twin = size.dense_twin_weight_bytes;
  return h(
    "dl",
    { class: "figures" },
    twin === null
      ? fact("on disk", format.bytes(size.file_bytes))
      : less(twin, size.file_bytes, `bytes on disk: ${format.bytes(size.file_bytes)}, dense ${format.bytes(twin)}`),
    speed && fact(`as fast as dense, batch ${speed.batch_sizes[0]}`, `${format.short(1 / speed.ratio_to_dense_twin[0])}×`),
    quality(report),
    model && less(model.dense, model.learnable, "learnable parameters"),
    model?.fixed > 0 && less(model.dense, model.learnable + model.fixed, "parameters with fixed ones"),
    adds?.dense > 0 && less(adds.dense, adds.planned, "multiply-adds per row"),
    fact("in memory once loaded", format.bytes(size.resident_bytes)),
    report.check && fact("largest error of the export", report.check.max_relative_error.toExponential(1)),
  );
}

const NAMES = { float32: "float32", float16: "float16", int8: "8 bits", uint8: "8 bits", int4: "4 bits" };

/** Savings of a version, or the known facts about a file without a card. */
export function savingsBlock(report) {
  const dataset = report.training?.dataset;
  const types = Object.entries(report.storage?.bytes_by_type ?? {});
  return h(
    "section",
    { class: "block" },
    h("h3", {}, report.has_card ? "Savings" : "File", dataset && h("small", {}, `trained on ${dataset}`)),
    figures(report),
    types.length > 0 &&
      h("p", { class: "why" }, `Weights by type: ${types.map(([type, size]) => `${NAMES[type] ?? type} ${format.bytes(size)}`).join(", ")}.`),
    report.card_problem && h("p", { class: "note" }, `The card: ${report.card_problem}`),
    !report.has_card && !report.card_problem && h("p", { class: "why" }, "An ONNX file without a model card: its layers, accuracy and dense twin are unknown."),
  );
}

/** Latency of the file and of its dense twin, as measured by the export. */
export function latencyBlock({ latency }) {
  if (!latency) return null;
  const cell = (text) => h("td", { class: "number" }, text);
  const rows = latency.batch_sizes.map((size, index) =>
    h(
      "tr",
      {},
      h("th", { scope: "row" }, format.integer(size)),
      cell(format.milliseconds(latency.median_us[index] / 1000)),
      cell(format.milliseconds(latency.dense_twin_median_us[index] / 1000)),
      cell(`${format.short(1 / latency.ratio_to_dense_twin[index])}×`),
    ),
  );
  const head = ["Batch", "This file", "Dense", "Speed"].map((text, index) => h("th", { scope: "col", class: index ? "number" : null }, text));
  const where = `${latency.device}, ${format.counted(latency.num_threads, "thread")}, measured at export`;
  return h(
    "section",
    { class: "block" },
    h("h3", {}, "Time of one run", h("small", {}, where)),
    h("table", {}, h("thead", {}, h("tr", {}, ...head)), h("tbody", {}, ...rows)),
  );
}

const size = (shape) => `[${shape.map((length) => (length === -1 ? "any" : length)).join(", ")}]`;

function about(tensor) {
  const columns = tensor.columns && format.counted(tensor.columns.length, "named column");
  const labels = tensor.labels && format.counted(tensor.labels.length, "label");
  return [tensor.kind, tensor.unit && `in ${tensor.unit}`, labels, columns, tensor.description].filter(Boolean).join(", ");
}

/** The inputs and outputs of a model. */
export function tensorsBlock({ name, inputs, outputs, preprocessing }) {
  const row = (kind) => (tensor) =>
    h(
      "tr",
      {},
      h("td", { "data-label": "Kind" }, kind),
      h("th", { scope: "row", "data-label": "Name" }, tensor.name),
      h("td", { "data-label": "Type" }, `${tensor.datatype} ${size(tensor.shape)}`),
      h("td", { "data-label": "About" }, about(tensor)),
    );
  const head = ["Kind", "Name", "Type", "About"].map((text) => h("th", { scope: "col" }, text));
  return h(
    "section",
    { class: "block" },
    h("h3", {}, "Inputs and outputs"),
    h(
      "div",
      { class: "scroll", tabindex: "0", role: "region", "aria-label": `Inputs and outputs of ${name}` },
      h(
        "table",
        { class: "stacks" },
        h("thead", {}, h("tr", {}, ...head)),
        h("tbody", {}, ...inputs.map(row("input")), ...outputs.map(row("output"))),
      ),
    ),
    preprocessing && h("p", { class: "why" }, `Before sending: ${preprocessing}`),
  );
}
