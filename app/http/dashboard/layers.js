// The layers of a model: dense weight and stored weight of each, with rank and bits.

import { h, s } from "./dom.js";
import * as format from "./format.js";
import { bar, convolution, FILLS, quantized, sketched } from "./matrices.js";

const FEW = 8;
const FACTORS = [
  [".first", ".second"],
  [".down", ".up"],
];
const PLANS = { two_products: "x·A·B", dense: "runs as dense x·W" };

const count = (what, dense, ours, show = format.compact) =>
  h("span", {}, `${what} ${show(ours)} `, h("b", {}, format.reduction(dense, ours)));

function row(name, how, picture, scale, ...sums) {
  const text = h("div", {}, h("strong", {}, name), " ", h("span", { class: "how" }, how), scale, h("p", { class: "sum" }, ...sums));
  return h("li", { class: "layer" }, picture, text);
}

function countsOf({ dense, learnable, fixed }) {
  const label = `learnable ${format.integer(learnable)} and fixed ${format.integer(fixed)} parameters, dense ${format.integer(dense)}`;
  const parts = [
    [FILLS.learnable, learnable],
    [FILLS.fixed, fixed],
  ];
  return [
    bar(parts, dense, label),
    count("learnable", dense, learnable),
    count("with fixed", dense, learnable + fixed),
    h("span", {}, `dense ${format.compact(dense)}`),
  ];
}

const planOf = (layer) => (layer.plan === "merged" ? `merged into ${layer.merged_into}` : (PLANS[layer.plan] ?? layer.plan));

function linearRow(layer) {
  const how = `${layer.in_features} → ${layer.out_features}, L=${layer.num_terms}, k=${layer.low_rank}, ${planOf(layer)}`;
  return row(layer.name, how, sketched(layer), ...countsOf(layer.parameters));
}

function convolutionRow(layer) {
  const { shape } = layer;
  const plan = layer.plan === "dense" ? "runs as one convolution" : "runs as its terms";
  const sizes = `${shape.in_channels} → ${shape.out_channels} channels, kernel ${shape.kernel_size.join("×")}`;
  const groups = shape.groups > 1 ? `, ${shape.groups} groups` : "";
  const how = `${sizes}${groups}, L=${layer.num_terms}, k=${layer.low_rank}, ${plan}`;
  return row(layer.name, how, convolution(layer), ...countsOf(layer.parameters));
}

const bitsOf = (scheme) => (scheme.startsWith("int4") ? 4 : 8);

/** Quantized layers, with the two factors of a low rank as one. */
export function joined(layers) {
  const found = [];
  for (const layer of layers) {
    const factor = FACTORS.find(([, second]) => layer.name.endsWith(second));
    const before = found.at(-1);
    const base = factor && layer.name.slice(0, -factor[1].length);
    if (before && factor && before.name === base + factor[0] && before.out_features === layer.in_features) {
      const bytes = before.weight_bytes + layer.weight_bytes;
      found[found.length - 1] = { ...before, name: base, out_features: layer.out_features, rank: layer.in_features, weight_bytes: bytes };
    } else {
      found.push(layer);
    }
  }
  return found;
}

function quantizedRow(layer) {
  const bits = bitsOf(layer.scheme);
  const sizes = layer.kind === "embedding" ? `embedding, ${layer.in_features} rows of ${layer.out_features}` : `${layer.in_features} → ${layer.out_features}`;
  const blocks = layer.block_size && !layer.rank ? `, blocks of ${layer.block_size}` : "";
  const how = `${sizes}${layer.rank ? `, rank ${layer.rank}` : ""}, ${bits} bits${blocks}`;
  const dense = 4 * layer.in_features * layer.out_features;
  const label = `${format.integer(layer.weight_bytes)} bytes; ${format.integer(dense)} dense at 32 bits`;
  return row(
    layer.name,
    how,
    quantized({ ...layer, bits }),
    bar([[FILLS.learnable, layer.weight_bytes]], dense, label),
    count("bytes", dense, layer.weight_bytes, format.bytes),
    h("span", {}, `dense ${format.bytes(dense)}`),
  );
}

function legend({ random, bits }) {
  const key = (fill, text) => h("li", {}, s("svg", { viewBox: "0 0 22 12", "aria-hidden": "true" }, fill(1, 1, 20, 10)), text);
  return h(
    "ul",
    { class: "legend" },
    key(FILLS.dense, "dense"),
    random && key(FILLS.learnable, "learnable"),
    random && key(FILLS.fixed, "fixed, random"),
    bits && key(FILLS.bits, "stored, filled by its bits of 32"),
  );
}

/** The section of the layers; none if the card names no layer. */
export function layersBlock(report) {
  const random = [...(report.layers ?? []).map(linearRow), ...(report.convolutions ?? []).map(convolutionRow)];
  const bits = joined(report.quantized_layers ?? []).map(quantizedRow);
  const rows = [...random, ...bits];
  if (!rows.length) return [];
  return [
    h(
      "section",
      { class: "block" },
      h("h3", {}, "Layers", h("small", {}, "matrices and bars to scale")),
      legend({ random: random.length > 0, bits: bits.length > 0 }),
      h("ul", {}, ...rows.slice(0, FEW)),
      rows.length > FEW && h("details", {}, h("summary", {}, `${rows.length - FEW} more layers`), h("ul", {}, ...rows.slice(FEW))),
    ),
  ];
}
