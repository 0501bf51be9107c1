// A drawing pad for digits, for models of the digits data, and real held-out digits.

import * as api from "../api.js";
import { h } from "../dom.js";
import { Answer } from "./answer.js";
import * as digit from "./digit.js";

const PAD = 28 * 10;
const PEN = 18;
const STEP = 7;
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

/** Whether a model accepts images like those of the digits data: 28x28 made from 8x8, with labels. */
export function takesDigits(model) {
  const [input, ...others] = model.inputs;
  const fits = !others.length && input.shape.length === 2 && input.shape[0] === -1 && input.shape[1] === 784;
  return fits && /8x8/.test(model.preprocessing ?? "") && model.outputs.some((output) => output.labels);
}

export class PadForm {
  constructor(model) {
    this.model = model;
    this.answer = new Answer(model, "Draw a digit, or pick one.");
    this.strokes = [];
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
    this.down = this.pressed = false;
    this.cursor = null;
    this.release();
    this.draw();
    digit.paint(this.seen, new Array(784).fill(0));
    this.answer.clear();
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

  ask(row, what) {
    digit.paint(this.seen, row);
    this.answer.ask({ body: JSON.stringify({ inputs: [row.map((value) => Number(value.toFixed(4)))] }) }, what);
  }
}
