// The compression curve of a model: bytes against the error, or against the metric of the budget.

import { ceiling } from "./charts.js";
import { h, s } from "./dom.js";
import * as format from "./format.js";

const WIDTH = 420;
const HEIGHT = 230;
const LEFT = 58;
const RIGHT = WIDTH - 14;
const TOP = 14;
const BOTTOM = HEIGHT - 46;
const MOST_TICKS = 6;
// a card may hold any float; the margins of a larger linear scale overflow
const LARGEST_SPAN = 1e300;
let drawn = 0;

const four = (value) => (Number.isFinite(value) ? String(Number(value.toPrecision(4))) : format.UNKNOWN);
const kind = (point) => (point.measured ? "measured" : "predicted");

/** Every nth of the ticks, so that their labels have room. */
const few = (ticks) => ticks.filter((_, index) => index % Math.ceil(ticks.length / MOST_TICKS) === 0);

/** A logarithmic scale from pixel `start` to `end`; ticks are at 1, 2 and 5 times powers of ten, or at the powers alone. */
function logarithmic(values, start, end) {
  const [low, high] = [Math.min(...values), Math.max(...values)].map(Math.log10);
  const margin = Math.max((high - low) * 0.06, 0.04);
  const [from, to] = [low - margin, high + margin];
  const ticks = [];
  for (let power = Math.floor(from); power <= to; power += 1) {
    for (const step of to - from > 2 ? [1] : [1, 2, 5]) ticks.push(Number(`${step}e${power}`));
  }
  const place = (value) => start + ((Math.log10(value) - from) / (to - from)) * (end - start);
  const inside = (tick) => tick > 0 && tick < Infinity && Math.log10(tick) >= from && Math.log10(tick) <= to;
  return { place, ticks: few(ticks.filter(inside)) };
}

function linear(values, start, end) {
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const margin = (high - low) * 0.08 || Math.abs(high) * 0.05 || 1;
  const [from, to] = [low - margin, high + margin];
  const step = ceiling((to - from) / 4);
  const first = Math.ceil(from / step);
  const ticks = Array.from({ length: MOST_TICKS }, (_, index) => (first + index) * step).filter((tick) => tick <= to);
  return { place: (value) => start + ((value - from) / (to - from)) * (end - start), ticks };
}

/** The measured points that no other one beats in bytes and value. */
function front(points, better) {
  const found = [];
  for (const point of points.filter((one) => one.measured)) {
    if (!found.length || better(point.value, found.at(-1).value)) found.push(point);
  }
  return found;
}

function axes(x, y, name) {
  const parts = [];
  for (const tick of y.ticks) {
    const at = y.place(tick).toFixed(1);
    parts.push(s("line", { class: "grid", x1: LEFT, x2: RIGHT, y1: at, y2: at }));
    parts.push(s("text", { x: LEFT - 6, y: at, dy: ".35em", "text-anchor": "end" }, four(tick)));
  }
  for (const tick of x.ticks) {
    const at = x.place(tick).toFixed(1);
    parts.push(s("line", { class: "grid", x1: at, x2: at, y1: TOP, y2: BOTTOM }));
    parts.push(s("text", { x: at, y: BOTTOM + 17, "text-anchor": "middle" }, format.bytes(tick)));
  }
  parts.push(s("text", { x: (LEFT + RIGHT) / 2, y: HEIGHT - 8, "text-anchor": "middle" }, "bytes of the parameters"));
  const middle = (TOP + BOTTOM) / 2;
  parts.push(s("text", { x: 12, y: middle, "text-anchor": "middle", transform: `rotate(-90 12 ${middle})` }, name));
  return parts;
}

/** The picture; null where no point can be drawn. */
function picture(curve, byMetric, summary) {
  const valued = curve.points.map((point) => ({ ...point, value: byMetric ? point.metric : point.error }));
  // an error of 0 has no place on a logarithmic scale
  const points = valued.filter(({ bytes, value }) => bytes > 0 && value !== null && (byMetric || value > 0));
  const values = points.map((point) => point.value);
  if (!points.length || (byMetric && Math.max(...values) - Math.min(...values) > LARGEST_SPAN)) return null;
  const sizes = points.map((point) => point.bytes);
  if (curve.original_bytes > 0) sizes.push(curve.original_bytes);
  const x = logarithmic(sizes, LEFT, RIGHT);
  const y = byMetric ? linear(values, BOTTOM, TOP) : logarithmic(values, BOTTOM, TOP);
  const place = (point) => [x.place(point.bytes).toFixed(1), y.place(point.value).toFixed(1)];
  const parts = axes(x, y, byMetric ? "metric" : "error of the outputs");
  if (curve.original_bytes > 0) {
    const at = x.place(curve.original_bytes).toFixed(1);
    parts.push(s("line", { class: "mark", x1: at, x2: at, y1: TOP, y2: BOTTOM }));
    parts.push(s("text", { x: at, y: TOP, dx: -5, dy: ".6em", "text-anchor": "end" }, "original"));
  }
  const best = front(points, byMetric ? (a, b) => a > b : (a, b) => a < b);
  parts.push(s("path", { class: "front", d: best.map(place).map(([left, top], index) => `${index ? "L" : "M"}${left} ${top}`).join("") }));
  for (const point of [...points.filter((one) => !one.chosen), ...points.filter((one) => one.chosen)]) {
    const [cx, cy] = place(point);
    parts.push(s("circle", { class: point.chosen ? "chosen" : kind(point), cx, cy, r: point.chosen ? 6 : 3.6 }, s("title", {}, label(point, byMetric))));
  }
  drawn += 1;
  const [title, description] = [`curve-title-${drawn}`, `curve-text-${drawn}`];
  return s(
    "svg",
    { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-labelledby": `${title} ${description}` },
    s("title", { id: title }, `${byMetric ? "Metric" : "Error of the outputs"} over bytes of the models that the compression considered`),
    s("desc", { id: description }, `${summary} The table below has every point.`),
    ...parts,
  );
}

const label = (point, byMetric) =>
  `${format.bytes(point.bytes)}, ${kind(point)} error ${four(point.error)}${byMetric ? `, metric ${four(point.metric)}` : ""}`;

function legend(points) {
  const key = (name, text) => h("li", {}, s("svg", { viewBox: "0 0 12 12", "aria-hidden": "true" }, s("circle", { class: name, cx: 6, cy: 6, r: 4.5 })), text);
  const others = points.filter((point) => !point.chosen);
  return h(
    "ul",
    { class: "legend" },
    key("chosen", "this file"),
    others.some((point) => point.measured) && key("measured", "measured"),
    others.some((point) => !point.measured) && key("predicted", "predicted"),
  );
}

function table(points) {
  const metric = points.some((point) => point.metric !== null);
  const cell = (text) => h("td", { class: "number" }, text);
  const rows = points.map((point) =>
    h(
      "tr",
      {},
      h("th", { scope: "row", class: "number" }, format.integer(point.bytes)),
      cell(four(point.error)),
      metric && cell(four(point.metric)),
      h("td", {}, point.chosen ? `${kind(point)}, this file` : kind(point)),
    ),
  );
  const heads = ["Bytes", "Error", ...(metric ? ["Metric"] : []), "Origin"];
  const head = heads.map((text, index) => h("th", { scope: "col", class: index < heads.length - 1 ? "number" : null }, text));
  return h("details", {}, h("summary", {}, "Curve as a table"), h("table", {}, h("thead", {}, h("tr", {}, ...head)), h("tbody", {}, ...rows)));
}

/** The section of the curve; null for a file that no compression to a budget made. */
export function curveBlock({ compression_curve: curve }) {
  if (!curve) return null;
  const chosen = curve.points.find((point) => point.chosen);
  const byMetric = chosen.metric !== null;
  const original = curve.original_metric === null ? "" : `, metric ${four(curve.original_metric)}`;
  const summary = `This file: ${label(chosen, byMetric)}. The original: ${format.bytes(curve.original_bytes)}${original}.`;
  return h(
    "section",
    { class: "block pareto" },
    h("h3", {}, `${byMetric ? "Metric" : "Error"} over bytes`, h("small", {}, curve.budget)),
    picture(curve, byMetric, summary),
    legend(curve.points),
    h("p", { class: "why" }, summary),
    table(curve.points),
  );
}
