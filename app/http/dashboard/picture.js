// What a model saves, as pictures: areas and lengths are to scale.

import { fact, h, s } from "./dom.js";
import * as format from "./format.js";

const PICTURE = { width: 118, height: 84, gap: 5 };
const FEW = 8;

function hatched(x, y, width, height) {
  const lines = [];
  for (let at = x + 3; at < x + width + height; at += 4.5) {
    const [x1, x2] = [Math.max(x, at - height), Math.min(x + width, at)];
    if (x2 > x1) lines.push(s("line", { class: "hatch", x1: x2, y1: y + (at - x2), x2: x1, y2: y + (at - x1) }));
  }
  return s("g", {}, s("rect", { class: "fixed", x, y, width, height }), ...lines);
}

const solid = (x, y, width, height) => s("rect", { class: "learnable", x, y, width, height });

/** The matrices of a layer to scale: the dense W, and its factors A and B. */
function matrices(layer) {
  const { in_features: rows, out_features: columns } = layer;
  const rank = 2 * layer.num_terms * layer.low_rank;
  // Beside one another: W (rows x columns), A (rows x rank), B (rank x columns).
  const scale = Math.min(
    (PICTURE.width - 2 * PICTURE.gap - 2) / (2 * columns + rank),
    (PICTURE.height - 2) / Math.max(rows, rank),
  );
  const size = (count) => Math.max(1.2, count * scale);
  const [high, wide, thin] = [size(rows), size(columns), size(rank)];
  const [left, middle] = [1, PICTURE.height / 2];
  const top = middle - high / 2;
  const label = `W is ${rows} by ${columns}; A is ${rows} by ${rank} and B ${rank} by ${columns}, half learned and half fixed`;
  const xA = left + wide + PICTURE.gap;
  const xB = xA + thin + PICTURE.gap;
  const yB = middle - thin / 2;
  return s(
    "svg",
    { viewBox: `0 0 ${PICTURE.width} ${PICTURE.height}`, role: "img", "aria-label": label },
    s("title", {}, label),
    s("rect", { class: "dense", x: left, y: top, width: wide, height: high }),
    solid(xA, top, thin / 2, high),
    hatched(xA + thin / 2, top, thin / 2, high),
    hatched(xB, yB, wide, thin / 2),
    solid(xB, yB + thin / 2, wide, thin / 2),
  );
}

/** A bar on which dense is the mark at 100%. */
function bar(parameters) {
  const { dense, learnable, fixed } = parameters;
  const most = Math.max(dense, learnable + fixed, 1);
  const scale = 400 / most;
  const [l, f, d] = [learnable * scale, fixed * scale, dense * scale];
  const label = `learnable ${format.integer(learnable)} and fixed ${format.integer(fixed)} parameters, dense ${format.integer(dense)}`;
  return s(
    "svg",
    { class: "bar", viewBox: "0 0 400 16", preserveAspectRatio: "none", role: "img", "aria-label": label },
    s("rect", { class: "dense", x: 0.5, y: 1, width: Math.max(0, d - 1), height: 14 }),
    solid(0, 3, l, 10),
    hatched(l, 3, f, 10),
  );
}

/** How much less than dense, of the counts themselves: rounding what is rounded already would be off now and then. */
function reduction(dense, ours) {
  if (!dense) return format.UNKNOWN;
  const value = 100 * (1 - ours / dense);
  return `${value < 0 ? "+" : "−"}${format.percent(Math.abs(value))}`;
}

const count = (what, dense, ours) => h("span", {}, `${what} ${format.compact(ours)} `, h("b", {}, reduction(dense, ours)));

const PLANS = { two_products: "x·A·B", dense: "runs as dense x·W" };

function layerRow(layer) {
  const counts = layer.parameters;
  const plan = layer.plan === "merged" ? `merged into ${layer.merged_into}` : (PLANS[layer.plan] ?? layer.plan);
  return h(
    "li",
    { class: "layer" },
    matrices(layer),
    h(
      "div",
      {},
      h("strong", {}, layer.name),
      " ",
      h("span", { class: "how" }, `${layer.in_features} → ${layer.out_features}, L=${layer.num_terms}, k=${layer.low_rank}, ${plan}`),
      bar(counts),
      h(
        "p",
        { class: "sum" },
        count("learnable", counts.dense, counts.learnable),
        count("with fixed", counts.dense, counts.learnable_and_fixed),
        h("span", {}, `dense ${format.compact(counts.dense)}`),
      ),
    ),
  );
}

function legend() {
  const key = (shape, text) => h("li", {}, s("svg", { viewBox: "0 0 22 12", "aria-hidden": "true" }, shape), text);
  return h(
    "ul",
    { class: "legend" },
    key(s("rect", { class: "dense", x: 1, y: 1, width: 20, height: 10 }), "dense"),
    key(solid(0, 0, 22, 12), "learnable"),
    key(hatched(0, 0, 22, 12), "fixed, random"),
  );
}

/** How well the model does on held-out rows: its accuracy, or the error of a regression in its unit. */
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

function headline(report) {
  const model = report.totals?.model;
  const adds = report.multiply_adds_per_row;
  const size = report.bytes;
  const speed = report.latency;
  const less = (dense, ours, what) => fact(what, reduction(dense, ours));
  return h(
    "dl",
    { class: "figures" },
    model && less(model.dense, model.learnable, "parameters to learn"),
    model && less(model.dense, model.learnable_and_fixed, "parameters, the fixed ones too"),
    adds && less(adds.dense, adds.planned, "multiply-adds for a row"),
    size.dense_twin_weight_bytes === null
      ? fact("on disk", format.bytes(size.file_bytes))
      : less(size.dense_twin_weight_bytes, size.file_bytes, `bytes on disk: ${format.bytes(size.file_bytes)}`),
    fact("in memory once loaded", format.bytes(size.resident_bytes)),
    quality(report),
    speed && fact(`of dense's time at batch ${speed.batch_sizes[0]}`, `${format.short(speed.ratio_to_dense_twin[0])}×`),
    report.check && fact("largest error of the export", report.check.max_relative_error.toExponential(1)),
  );
}

/** The part of the page that tells what a version saves. */
export function savings(report) {
  const layers = report.layers ?? [];
  const dataset = report.training?.dataset;
  const parts = [h("h3", {}, report.has_card ? "What it saves" : "File", dataset && h("small", {}, `trained on ${dataset}`)), headline(report)];
  if (report.card_problem) parts.push(h("p", { class: "note" }, `The card: ${report.card_problem}`));
  if (!report.has_card) {
    parts.push(h("p", { class: "why" }, "The file has no card: layers, parameters, accuracy and error are not known."));
  }
  const blocks = [h("section", { class: "block" }, ...parts)];
  if (layers.length) {
    const rows = layers.map(layerRow);
    blocks.push(
      h(
        "section",
        { class: "block" },
        h("h3", {}, "Layers", h("small", {}, "matrices and bars to scale")),
        legend(),
        h("ul", {}, ...rows.slice(0, FEW)),
        rows.length > FEW && h("details", {}, h("summary", {}, `${rows.length - FEW} more layers`), h("ul", {}, ...rows.slice(FEW))),
      ),
    );
  }
  return blocks;
}
