// Converts pen strokes to the model's training format: 8x8 counts of ink, resized bilinearly to 28x28.
//
// The training images (UCI, "Optical Recognition of Handwritten Digits") are bitmaps of 32x32, scaled until the digit
// fills the height, and counted in blocks of 4x4. All of them have about the same share of ink, so the width of the
// pen is chosen for that share.

const SIDE = 32;
const BLOCK = 4;
const CELLS = SIDE / BLOCK;
const INK = 0.305; // mean over the data set
const WIDEST = 27; // few digits fill the width
const PEN = { thinnest: 1.2, broadest: 5 }; // half the width of a line, in pixels of the bitmap

/** Strokes, lists of [x, y], moved and scaled to fill the bitmap, minus the margin of the pen. */
export function fitted(strokes, margin) {
  const points = strokes.flat();
  const xs = points.map(([x]) => x);
  const ys = points.map(([, y]) => y);
  const [left, right, top, bottom] = [Math.min(...xs), Math.max(...xs), Math.min(...ys), Math.max(...ys)];
  const scale = Math.min((SIDE - 2 * margin) / Math.max(bottom - top, 1e-6), (WIDEST - 2 * margin) / Math.max(right - left, 1e-6));
  const [midX, midY] = [(left + right) / 2, (top + bottom) / 2];
  return strokes.map((stroke) => stroke.map(([x, y]) => [SIDE / 2 + scale * (x - midX), SIDE / 2 + scale * (y - midY)]));
}

function distance2(px, py, [ax, ay], [bx, by]) {
  const [dx, dy] = [bx - ax, by - ay];
  const length = dx * dx + dy * dy;
  const t = length ? Math.max(0, Math.min(1, ((px - ax) * dx + (py - ay) * dy) / length)) : 0;
  return (px - ax - t * dx) ** 2 + (py - ay - t * dy) ** 2;
}

/** 64 counts from 0 to 16: pixels of each 4x4 block within `radius` of a stroke. */
export function counts(strokes, radius) {
  const lines = fitted(strokes, radius);
  const cells = new Array(CELLS * CELLS).fill(0);
  for (let y = 0; y < SIDE; y += 1) {
    for (let x = 0; x < SIDE; x += 1) {
      const inked = lines.some((line) =>
        line.some((point, index) => distance2(x + 0.5, y + 0.5, line[Math.max(0, index - 1)], point) <= radius * radius),
      );
      if (inked) cells[Math.floor(y / BLOCK) * CELLS + Math.floor(x / BLOCK)] += 1;
    }
  }
  return cells;
}

/** The 8x8 counts of a drawing, with the pen width that best matches the data's share of ink. */
export function fromStrokes(strokes) {
  let { thinnest: low, broadest: high } = PEN;
  for (let turn = 0; turn < 7; turn += 1) {
    const middle = (low + high) / 2;
    const ink = counts(strokes, middle).reduce((sum, count) => sum + count, 0) / (SIDE * SIDE);
    if (ink < INK) low = middle;
    else high = middle;
  }
  return counts(strokes, (low + high) / 2);
}

/** 8x8 counts to 28x28 between 0 (paper) and 1 (ink), bilinearly, with pixel centres aligned as in torch. */
export function enlarged(cells, size = 28) {
  const row = [];
  for (let y = 0; y < size; y += 1) {
    for (let x = 0; x < size; x += 1) {
      row.push(sample(cells, ((x + 0.5) * CELLS) / size - 0.5, ((y + 0.5) * CELLS) / size - 0.5) / 16);
    }
  }
  return row;
}

function sample(cells, x, y) {
  const [left, top] = [Math.max(0, x), Math.max(0, y)];
  const [x0, y0] = [Math.min(CELLS - 1, Math.floor(left)), Math.min(CELLS - 1, Math.floor(top))];
  const [x1, y1] = [Math.min(CELLS - 1, x0 + 1), Math.min(CELLS - 1, y0 + 1)];
  const [fx, fy] = [left - x0, top - y0];
  const upper = cells[y0 * CELLS + x0] * (1 - fx) + cells[y0 * CELLS + x1] * fx;
  const lower = cells[y1 * CELLS + x0] * (1 - fx) + cells[y1 * CELLS + x1] * fx;
  return upper * (1 - fy) + lower * fy;
}

/** A sample of the file: 64 digits of base 17. */
export const parse = (text) => [...text].map((digit) => Number.parseInt(digit, 17));

/** Paint numbers between 0 and 1 into a canvas of their size, ink on paper. */
export function paint(canvas, values) {
  const side = Math.sqrt(values.length);
  canvas.width = side;
  canvas.height = side;
  const image = new ImageData(side, side);
  values.forEach((value, index) => {
    const grey = Math.round(255 * (1 - value));
    image.data.set([grey, grey, grey, 255], 4 * index);
  });
  canvas.getContext("2d").putImageData(image, 0, 0);
}
