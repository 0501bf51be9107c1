// Small charts of the last two minutes, as inline SVG.

import { h, s } from "./dom.js";
import { LENGTH } from "./series.js";

const WIDTH = 240;
const HEIGHT = 62;
const AGO = "2 min ago";
const EVERY_S = 2;

/** A round number at or above a value, for the top of an axis. */
export function ceiling(value) {
  if (!(value > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 1.5, 2, 3, 5, 7.5, 10].map((step) => step * power).find((step) => step >= value * 0.999);
}

function runs(values, top) {
  const step = WIDTH / (LENGTH - 1);
  const offset = LENGTH - values.length;
  const pieces = [];
  let piece = [];
  values.forEach((value, index) => {
    if (value === null || value === undefined) {
      if (piece.length) pieces.push(piece);
      piece = [];
    } else {
      piece.push([(offset + index) * step, HEIGHT - (Math.min(value, top) / top) * (HEIGHT - 3)]);
    }
  });
  if (piece.length) pieces.push(piece);
  return pieces;
}

const at = ([x, y]) => `${x.toFixed(1)} ${y.toFixed(1)}`;

function line(piece) {
  // A single point would be invisible.
  const points = piece.length > 1 ? piece : [[piece[0][0] - 3, piece[0][1]], piece[0]];
  return `M${points.map(at).join("L")}`;
}

/** One chart: a title, the latest value, and one or two curves. */
export class Chart {
  constructor(title, format, note = null) {
    this.title = title;
    this.format = format;
    this.value = h("p", {}, format(null));
    this.svg = s("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img" });
    this.top = h("span", {}, "");
    this.left = h("span", {}, AGO);
    this.values = [];
    this.svg.addEventListener("pointermove", (event) => this.point(event));
    this.svg.addEventListener("pointerleave", () => (this.left.textContent = AGO));
    this.note = note;
    this.element = h(
      "div",
      { class: "chart" },
      h("h4", {}, title),
      this.value,
      this.svg,
      h("div", { class: "axis", "aria-hidden": "true" }, this.left, this.top),
    );
    this.update([]);
  }

  /** Say the value under the pointer. */
  point(event) {
    const box = this.svg.getBoundingClientRect();
    const back = Math.round((1 - (event.clientX - box.left) / box.width) * (LENGTH - 1));
    const value = this.values.at(-1 - back);
    this.left.textContent = value === undefined ? AGO : `${this.format(value)}, ${EVERY_S * back} s ago`;
  }

  update(values, upper = null) {
    this.values = values;
    const seen = [...values, ...(upper ?? [])].filter((value) => value !== null && value !== undefined);
    const top = ceiling(Math.max(0, ...seen));
    const children = [s("line", { class: "base", x1: 0, x2: WIDTH, y1: HEIGHT, y2: HEIGHT })];
    for (const piece of runs(values, top)) {
      const path = line(piece);
      children.push(s("path", { class: "area", d: `${path}V${HEIGHT}H${piece[0][0].toFixed(1)}Z` }));
      children.push(s("path", { class: "curve", d: path }));
    }
    if (upper) for (const piece of runs(upper, top)) children.push(s("path", { class: "curve upper", d: line(piece) }));
    this.svg.replaceChildren(...children);
    const latest = values.at(-1) ?? null;
    const parts = [this.format(latest)];
    if (upper) parts.push(" ", h("small", { class: "upper-key" }, `p99 ${this.format(upper.at(-1) ?? null)}`));
    else if (this.note) parts.push(" ", h("small", {}, this.note));
    this.value.replaceChildren(...parts);
    this.top.textContent = seen.length ? `top ${this.format(top)}` : "";
    const most = seen.length ? `at most ${this.format(Math.max(...seen))}` : "no requests yet";
    this.svg.setAttribute("aria-label", `${this.title} over the last two minutes: now ${this.format(latest)}, ${most}`);
  }
}
