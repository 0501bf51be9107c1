// A layer to scale: matrices as rectangles with areas proportional to their entries or bits.

import { s } from "./dom.js";

const PICTURE = { width: 118, height: 84, gap: 5 };
const THINNEST = 1.2;

function hatched(x, y, width, height) {
  const lines = [];
  for (let at = x + 3; at < x + width + height; at += 4.5) {
    const [x1, x2] = [Math.max(x, at - height), Math.min(x + width, at)];
    if (x2 > x1) lines.push(s("line", { class: "hatch", x1: x2, y1: y + (at - x2), x2: x1, y2: y + (at - x1) }));
  }
  return s("g", {}, s("rect", { class: "fixed", x, y, width, height }), ...lines);
}

const plain = (name) => (x, y, width, height) => s("rect", { class: name, x, y, width, height });

/** An outline for 32 bits per entry, filled in proportion to the actual bits. */
const inBits = (bits) => (x, y, width, height) =>
  s(
    "g",
    {},
    plain("dense")(x, y, width, height),
    plain("learnable")(x, y + height * (1 - bits / 32), width, (height * bits) / 32),
  );

export const FILLS = { dense: plain("dense"), learnable: plain("learnable"), fixed: hatched, bits: inBits(8) };

/** Stacks of matrices side by side: [[{rows, columns, fill}]]; matrices of a stack touch. */
export function picture(stacks, label) {
  const width = stacks.reduce((sum, stack) => sum + Math.max(...stack.map((part) => part.columns)), 0);
  const height = Math.max(...stacks.map((stack) => stack.reduce((sum, part) => sum + part.rows, 0)));
  const scale = Math.min((PICTURE.width - (stacks.length - 1) * PICTURE.gap - 2) / width, (PICTURE.height - 2) / height);
  const size = (count) => Math.max(THINNEST, count * scale);
  const shapes = [];
  let x = 1;
  for (const stack of stacks) {
    const high = stack.reduce((sum, part) => sum + size(part.rows), 0);
    let y = (PICTURE.height - high) / 2;
    for (const { rows, columns, fill } of stack) {
      shapes.push(fill(x, y, size(columns), size(rows)));
      y += size(rows);
    }
    x += size(Math.max(...stack.map((part) => part.columns))) + (stack.touches ? 0 : PICTURE.gap);
  }
  const view = `0 0 ${PICTURE.width} ${PICTURE.height}`;
  return s("svg", { viewBox: view, role: "img", "aria-label": label }, s("title", {}, label), ...shapes);
}

const matrix = (rows, columns, fill) => [{ rows, columns, fill }];
const beside = (stack) => Object.assign(stack, { touches: true });

/** A sketched linear layer: W, and A and B instead of it, half learned and half fixed. */
export function sketched({ in_features: rows, out_features: columns, num_terms: terms, low_rank: rank }) {
  const half = terms * rank;
  return picture(
    [
      matrix(rows, columns, FILLS.dense),
      beside(matrix(rows, half, FILLS.learnable)),
      matrix(rows, half, FILLS.fixed),
      [
        { rows: half, columns, fill: FILLS.fixed },
        { rows: half, columns, fill: FILLS.learnable },
      ],
    ],
    `W is ${rows} by ${columns}; A is ${rows} by ${2 * half} and B ${2 * half} by ${columns}, half learned and half fixed`,
  );
}

/** A sketched convolution: its kernel as a matrix, and the two convolutions of each kind of terms. */
export function convolution({ shape, num_terms: terms, low_rank: rank, terms: kind }) {
  const { in_channels: inputs, out_channels: outputs, groups } = shape;
  const kernel = shape.kernel_size.reduce((product, size) => product * size, 1);
  const own = inputs / groups;
  const half = terms * rank * (kind === "both" ? 1 : 2);
  const stacks = [matrix(own * kernel, outputs, FILLS.dense)];
  if (kind !== "input") stacks.push(matrix(own * kernel, groups * half, FILLS.learnable), matrix(half, outputs, FILLS.fixed));
  if (kind !== "output") stacks.push(matrix(inputs, half, FILLS.fixed), matrix(half * kernel, outputs, FILLS.learnable));
  const across = shape.kernel_size.join("×");
  return picture(stacks, `the kernel of ${own}·${across} by ${outputs} and the convolutions of rank ${half} in its place`);
}

/** A quantized layer: W at 32 bits, and the stored weight: one matrix, or the two factors of a low rank. */
export function quantized({ in_features: rows, out_features: columns, rank, bits }) {
  const fill = inBits(bits);
  const stored = rank ? [matrix(rows, rank, fill), matrix(rank, columns, fill)] : [matrix(rows, columns, fill)];
  const what = rank ? `factors of rank ${rank}` : "one matrix";
  return picture([matrix(rows, columns, FILLS.dense), ...stored], `W is ${rows} by ${columns}; stored as ${what} in ${bits} of 32 bits`);
}

/** A bar on which dense is the mark at 100%. */
export function bar(parts, dense, label) {
  const total = parts.reduce((sum, [, count]) => sum + count, 0);
  const scale = 400 / Math.max(dense, total, 1);
  let x = 0;
  const shapes = parts.map(([fill, count]) => {
    const shape = fill(x, 3, count * scale, 10);
    x += count * scale;
    return shape;
  });
  return s(
    "svg",
    { class: "bar", viewBox: "0 0 400 16", preserveAspectRatio: "none", role: "img", "aria-label": label },
    s("rect", { class: "dense", x: 0.5, y: 1, width: Math.max(0, dense * scale - 1), height: 14 }),
    ...shapes,
  );
}
