// Small charts over time, as inline SVG.

import { h, s } from "./dom.js";
import { duration } from "./format.js";

const WIDTH = 240;
const HEIGHT = 62;

/** A round number at or above a value, for the top of an axis. */
export function ceiling(value) {
  if (!(value > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 1.5, 2, 3, 5, 7.5, 10].map((step) => step * power).find((step) => step >= value * 0.999);
}

/** Points [{from, to, value}] as pieces of a line, which is interrupted where a value or a time is missing. */
function pieces(points, span, now, top) {
  const x = (seconds) => Math.max(0, WIDTH * (1 - (now - seconds) / span));
  const found = [];
  let piece = [];
  let end = null;
  for (const { from, to, value } of points) {
    if ((value === null || from !== end) && piece.length) {
      found.push(piece);
      piece = [];
    }
    end = to;
    if (value === null) continue;
    const y = HEIGHT - (Math.min(value, top) / top) * (HEIGHT - 3);
    // A reading after a long pause is a mean over the pause.
    if (to - from > span / 25 || !piece.length) piece.push([x(from), y]);
    piece.push([x(to), y]);
  }
  return piece.length ? [...found, piece] : found;
}

const line = (piece) => `M${piece.map(([x, y]) => `${x.toFixed(1)} ${y.toFixed(1)}`).join("L")}`;
const known = (value) => value !== null && value !== undefined;

/** One chart: a title, the latest value, and one or two curves. */
export class Chart {
  constructor(title, format) {
    this.title = title;
    this.format = format;
    this.value = h("p", {}, format(null));
    this.svg = s("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img" });
    this.top = h("span", {}, "");
    this.left = h("span", {}, "");
    this.points = [];
    this.range = null;
    this.svg.addEventListener("pointermove", (event) => this.point(event));
    this.svg.addEventListener("pointerleave", () => this.label());
    this.element = h(
      "div",
      { class: "chart" },
      h("h4", {}, title),
      this.value,
      this.svg,
      h("div", { class: "axis", "aria-hidden": "true" }, this.left, this.top),
    );
  }

  label() {
    this.left.textContent = `${this.range.name} ago`;
  }

  /** Show the value under the pointer. */
  point(event) {
    const box = this.svg.getBoundingClientRect();
    const at = this.now - this.range.seconds * (1 - (event.clientX - box.left) / box.width);
    const found = this.points.find((point) => point.from <= at && at <= point.to);
    if (found && known(found.value)) this.left.textContent = `${this.format(found.value)}, ${duration(this.now - at)} ago`;
    else this.label();
  }

  /** Draw the points of a range; `upper` is a second curve of the same times. */
  update(range, now, points, upper = null) {
    if (range !== this.range) {
      this.range = range;
      this.label();
    }
    this.points = points;
    this.now = now;
    const seen = [...points, ...(upper ?? [])].map((point) => point.value).filter(known);
    const top = ceiling(Math.max(0, ...seen));
    const children = [s("line", { class: "base", x1: 0, x2: WIDTH, y1: HEIGHT, y2: HEIGHT })];
    for (const piece of pieces(points, range.seconds, now, top)) {
      const path = line(piece);
      children.push(s("path", { class: "area", d: `${path}V${HEIGHT}H${piece[0][0].toFixed(1)}Z` }));
      children.push(s("path", { class: "curve", d: path }));
    }
    for (const piece of upper ? pieces(upper, range.seconds, now, top) : []) {
      children.push(s("path", { class: "curve upper", d: line(piece) }));
    }
    this.svg.replaceChildren(...children);
    const latest = this.format(points.at(-1)?.value ?? null);
    const p99 = upper && h("small", { class: "upper-key" }, `p99 ${this.format(upper.at(-1)?.value ?? null)}`);
    this.value.replaceChildren(...(p99 ? [latest, " ", p99] : [latest]));
    this.top.textContent = seen.length ? `top ${this.format(top)}` : "";
    const most = seen.length ? `at most ${this.format(Math.max(...seen))}` : "no requests yet";
    this.svg.setAttribute("aria-label", `${this.title} over the last ${range.name}: now ${latest}, ${most}`);
  }
}
