// A form to ask a model: a pad to draw on for images of digits, JSON for everything else.

import * as api from "./api.js";
import * as digit from "./digit.js";
import { h } from "./dom.js";
import * as format from "./format.js";

const PAD = 28 * 10;
const PEN = 18;
const STEP = 7;
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

/** Whether a model takes images like those of the digits data: 28x28 made from 8x8, with labels. */
function takesDigits(model) {
  const [input, ...others] = model.inputs;
  const fits = !others.length && input.shape.length === 2 && input.shape[0] === -1 && input.shape[1] === 784;
  return fits && /8x8/.test(model.preprocessing ?? "") && model.outputs.some((output) => output.labels);
}

/** The form that suits a model. */
export function tryForm(model) {
  return takesDigits(model) ? new DigitForm(model) : new JsonForm(model);
}

class Answer {
  constructor(labels) {
    this.best = h("b", {}, "?");
    this.note = h("span", {}, "Draw a digit, or pick one.");
    this.bars = new Map(
      labels.map((label) => {
        const fill = h("i");
        const value = h("span", {}, "");
        const item = h("li", {}, h("span", {}, label), h("span", { class: "track", "aria-hidden": "true" }, fill), value);
        return [label, { fill, value, item }];
      }),
    );
    this.element = h(
      "div",
      {},
      h("p", { class: "answer", "aria-live": "polite" }, this.best, this.note),
      h("ul", { class: "bars", "aria-label": "Probabilities" }, ...[...this.bars.values()].map((bar) => bar.item)),
    );
  }

  show(prediction, note) {
    this.best.textContent = prediction?.label ?? "?";
    this.note.textContent = note;
    const found = new Map((prediction?.top_k ?? []).map((ranked) => [ranked.label, ranked.probability]));
    for (const [label, bar] of this.bars) {
      const part = found.get(label);
      bar.fill.style.width = `${100 * (part ?? 0)}%`;
      bar.value.textContent = part === undefined ? "" : format.fraction(part);
      bar.item.className = label === prediction?.label ? "best" : "";
    }
  }
}

class DigitForm {
  constructor(model) {
    this.model = model;
    this.labels = model.outputs.find((output) => output.labels).labels;
    this.answer = new Answer(this.labels);
    this.strokes = [];
    this.asked = 0;
    this.cursor = null;
    this.down = false;
    this.pad = h("canvas", {
      class: "pad",
      width: PAD,
      height: PAD,
      tabindex: "0",
      role: "application",
      "aria-label": "Drawing pad. Arrow keys move the pen, space lowers and lifts it, Escape clears.",
      onpointerdown: (event) => this.begin(event),
      onpointermove: (event) => this.move(event),
      onpointerup: () => this.end(),
      onpointercancel: () => this.end(),
      onkeydown: (event) => this.key(event),
    });
    this.seen = h("canvas", { class: "seen", width: 28, height: 28, role: "img", "aria-label": "What the model sees" });
    this.samples = h("div", { class: "samples", role: "group", "aria-label": "Real digits that were not in the training" });
    this.element = h(
      "div",
      {},
      h(
        "div",
        { class: "try" },
        h("div", {}, this.pad, h("div", { class: "under" }, h("button", { type: "button", onclick: () => this.clear() }, "Clear"), h("span", {}, "it sees"), this.seen)),
        this.answer.element,
      ),
      this.samples,
    );
    this.clear();
    this.offerSamples();
  }

  async offerSamples() {
    try {
      const { samples } = await api.digits();
      this.samples.replaceChildren(...samples.map((sample, index) => this.sampleButton(sample, index)));
    } catch {
      this.samples.replaceChildren();
    }
  }

  sampleButton(sample, index) {
    const cells = digit.parse(sample.counts);
    const canvas = h("canvas");
    digit.paint(canvas, digit.enlarged(cells));
    return h(
      "button",
      {
        type: "button",
        "aria-label": `A real ${sample.label}, number ${(index % 2) + 1}`,
        "aria-pressed": "false",
        onclick: (event) => {
          this.clear();
          event.currentTarget.setAttribute("aria-pressed", "true");
          this.ask(digit.enlarged(cells), `a real ${sample.label}`);
        },
      },
      canvas,
    );
  }

  point(event) {
    const box = this.pad.getBoundingClientRect();
    return [((event.clientX - box.left) / box.width) * PAD, ((event.clientY - box.top) / box.height) * PAD];
  }

  begin(event) {
    if (event.button !== 0) return;
    event.preventDefault();
    this.pad.focus({ preventScroll: true });
    this.pad.setPointerCapture(event.pointerId);
    this.release();
    this.pressed = true;
    this.strokes.push([this.point(event)]);
    this.draw();
  }

  move(event) {
    if (!this.pressed) return;
    const events = event.getCoalescedEvents?.() ?? [];
    for (const one of events.length ? events : [event]) this.strokes.at(-1).push(this.point(one));
    this.draw();
  }

  end() {
    if (!this.pressed) return;
    this.pressed = false;
    this.recognise();
  }

  key(event) {
    if (event.key === "Escape") this.clear();
    else if (event.key === " ") this.toggle();
    else if (ARROWS[event.key]) this.step(ARROWS[event.key]);
    else return;
    event.preventDefault();
  }

  toggle() {
    this.cursor ??= [PAD / 2, PAD / 4];
    this.down = !this.down;
    if (this.down) {
      this.release();
      this.strokes.push([[...this.cursor]]);
    } else {
      this.recognise();
    }
    this.draw();
  }

  step([dx, dy]) {
    const [x, y] = this.cursor ?? [PAD / 2, PAD / 4];
    this.cursor = [Math.max(0, Math.min(PAD, x + STEP * dx)), Math.max(0, Math.min(PAD, y + STEP * dy))];
    if (this.down) this.strokes.at(-1).push([...this.cursor]);
    this.draw();
  }

  release() {
    for (const button of this.samples.children) button.setAttribute("aria-pressed", "false");
  }

  clear() {
    this.strokes = [];
    this.asked += 1;
    this.down = this.pressed = false;
    this.cursor = null;
    this.release();
    this.draw();
    digit.paint(this.seen, new Array(784).fill(0));
    this.answer.show(null, "Draw a digit, or pick one.");
  }

  draw() {
    const pen = this.pad.getContext("2d");
    pen.fillStyle = "#fff";
    pen.fillRect(0, 0, PAD, PAD);
    pen.strokeStyle = pen.fillStyle = "#16302e";
    pen.lineWidth = PEN;
    pen.lineCap = pen.lineJoin = "round";
    for (const stroke of this.strokes) {
      pen.beginPath();
      pen.moveTo(...stroke[0]);
      for (const point of stroke) pen.lineTo(...point);
      pen.stroke();
    }
    if (this.cursor) {
      pen.beginPath();
      pen.arc(...this.cursor, this.down ? PEN / 2 : PEN / 3, 0, 7);
      pen.lineWidth = 2;
      pen.strokeStyle = "#b4540a";
      pen.stroke();
    }
  }

  recognise() {
    const travelled = this.strokes.reduce((sum, stroke) => sum + stroke.length, 0);
    if (travelled > 2) this.ask(digit.enlarged(digit.fromStrokes(this.strokes)), null);
  }

  async ask(row, what) {
    const turn = (this.asked += 1);
    digit.paint(this.seen, row);
    const body = JSON.stringify({ inputs: [row.map((value) => Number(value.toFixed(4)))], top_k: this.labels.length });
    const began = performance.now();
    let shown = [null, ""];
    try {
      const { predictions, version } = await api.predict(this.model.name, this.model.version, body);
      const took = `version ${version}, ${format.milliseconds(performance.now() - began)} with the way there and back`;
      shown = [predictions[0], [what, took].filter(Boolean).join("; ")];
    } catch (error) {
      shown = [null, error.message];
    }
    if (turn === this.asked) this.answer.show(...shown);
  }
}

const EXAMPLES = { BYTES: () => "text", BOOL: () => false };
const MOST = 4096;

/** A value of a shape; dimensions that are free get one entry. */
function filled(shape, make) {
  const [size, ...inner] = shape;
  if (size === undefined) return make();
  return Array.from({ length: size === -1 ? 1 : size }, () => filled(inner, make));
}

function example(model, random) {
  const inputs = {};
  for (const input of model.inputs) {
    const count = input.shape.reduce((product, size) => product * (size === -1 ? 1 : size), 1);
    const number = input.datatype.startsWith("FP") ? () => Number((random ? 2 * Math.random() - 1 : 0).toFixed(3)) : () => 0;
    if (count > MOST) return null;
    inputs[input.name] = filled(input.shape, EXAMPLES[input.datatype] ?? number);
  }
  return JSON.stringify({ inputs });
}

class JsonForm {
  constructor(model) {
    this.model = model;
    const id = `body-${model.name}`;
    const given = example(model, false);
    this.body = h("textarea", { id, spellcheck: "false", rows: "6" });
    this.body.value = given ?? '{"inputs": …}';
    this.result = h("pre", { tabindex: "0", "aria-live": "polite", "aria-label": "Answer" }, "");
    this.result.hidden = true;
    const shapes = model.inputs.map((input) => `${input.name}: ${input.datatype} [${input.shape.join(", ")}]`).join("; ");
    const units = model.outputs.filter((output) => output.unit).map((output) => `${output.name} in ${output.unit}`);
    this.element = h(
      "div",
      {},
      h("label", { for: id }, `Request as JSON. ${[shapes, ...units].join("; ")}`),
      this.body,
      h(
        "div",
        { class: "actions" },
        h("button", { type: "button", class: "primary", onclick: () => this.send() }, "Ask"),
        given !== null && h("button", { type: "button", onclick: () => (this.body.value = example(model, true)) }, "Random numbers"),
      ),
      this.result,
    );
  }

  async send() {
    this.result.hidden = false;
    const began = performance.now();
    try {
      const answer = await api.predict(this.model.name, this.model.version, this.body.value);
      const text = JSON.stringify(answer, null, 1).replaceAll(/\n\s+(?=[-\d\]])/g, " ");
      this.result.textContent = `${text.slice(0, 20_000)}\n\n${format.milliseconds(performance.now() - began)}`;
    } catch (error) {
      this.result.textContent = error.message;
    }
  }
}
