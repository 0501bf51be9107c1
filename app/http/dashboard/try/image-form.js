// An image for models with an image input, resized and scaled to the model's format.

import { h } from "../dom.js";
import { Answer } from "./answer.js";
import { dropZone } from "./drop.js";

const FREE = 224; // size for models that accept any size
const IMAGENET = { mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225] };
/** Conversions of bytes to values: as a function of the byte and its channel, and in Python. */
const SCALES = [
  { name: "0 to 1", value: (byte) => byte / 255, python: "x = x / 255" },
  { name: "0 to 255", value: (byte) => byte, python: null },
  { name: "−1 to 1", value: (byte) => byte / 127.5 - 1, python: "x = x / 127.5 - 1" },
  {
    name: "ImageNet's mean and deviation",
    value: (byte, channel) => (byte / 255 - IMAGENET.mean[channel % 3]) / IMAGENET.std[channel % 3],
    python: `x = (x / 255 - ${JSON.stringify(IMAGENET.mean)}) / ${JSON.stringify(IMAGENET.std)}`,
  },
];

/** {channels, height, width, last} of an input that looks like an image, else null. */
function imageOf({ shape, datatype }) {
  if (shape.length !== 4 || !/^(FP|UINT8)/.test(datatype)) return null;
  const [, a, b, c] = shape;
  const found = [1, 3].includes(a) ? { channels: a, height: b, width: c, last: false } : [1, 3].includes(c) ? { channels: c, height: a, width: b, last: true } : null;
  if (!found) return null;
  const side = (length) => (length === -1 ? FREE : length);
  return { ...found, height: side(found.height), width: side(found.width) };
}

/** Whether the only input of a model is an image. */
export const takesImages = ({ inputs }) => inputs.length === 1 && imageOf(inputs[0]) !== null;

/** The scale suggested by a model's card or input type. */
function suggested({ inputs, preprocessing }) {
  if (inputs[0].datatype === "UINT8") return 1;
  return /imagenet|0\.485/i.test(preprocessing ?? "") ? 3 : 0;
}

export class ImageForm {
  constructor(model) {
    this.input = model.inputs[0];
    this.size = imageOf(this.input);
    const { width, height } = this.size;
    this.answer = new Answer(model, "Choose an image, or drop one.");
    this.canvas = h("canvas", { class: "preview", width, height, role: "img", "aria-label": "What the model sees" });
    const options = SCALES.map(({ name }, index) => h("option", { value: index }, name));
    this.scale = h("select", { id: `scale-${model.name}`, onchange: () => this.loaded && this.ask() }, ...options);
    this.scale.value = String(suggested(model));
    this.element = h(
      "div",
      { class: "row-form" },
      model.preprocessing && h("p", { class: "why" }, `Before sending: ${model.preprocessing}`),
      h("div", { class: "actions" }, dropZone("Choose an image", "image/*", (file) => this.take(file))),
      h("div", { class: "image" }, this.canvas, h("div", {}, h("label", { for: this.scale.id }, `Resized to ${width}×${height}; values from`), this.scale)),
      this.answer.element,
    );
  }

  async take(file) {
    const { width, height } = this.size;
    try {
      // Without <img>, because the content security policy refuses its URL.
      const bitmap = await createImageBitmap(file);
      const context = this.canvas.getContext("2d");
      context.fillStyle = "#fff";
      context.fillRect(0, 0, width, height);
      context.imageSmoothingQuality = "high";
      context.drawImage(bitmap, 0, 0, width, height);
      this.loaded = file.name;
    } catch {
      this.answer.fail(`${file.name} is not an image that this browser reads.`);
      return;
    }
    await this.ask();
  }

  /** The image as nested lists in the shape of the input. */
  values() {
    const { channels, height, width, last } = this.size;
    const { data } = this.canvas.getContext("2d").getImageData(0, 0, width, height);
    const scale = SCALES[this.scale.value].value;
    const at = (channel, y, x) => {
      const [r, g, b] = data.subarray(4 * (y * width + x));
      const byte = channels === 1 ? Math.round(0.299 * r + 0.587 * g + 0.114 * b) : [r, g, b][channel];
      return Number(scale(byte, channel).toFixed(4));
    };
    const list = (length, make) => Array.from({ length }, (_, index) => make(index));
    if (last) return list(height, (y) => list(width, (x) => list(channels, (channel) => at(channel, y, x))));
    return list(channels, (channel) => list(height, (y) => list(width, (x) => at(channel, y, x))));
  }

  /** Lines of Python that read a file and make the request from it. */
  python() {
    const { channels, height, width, last } = this.size;
    const scale = SCALES[this.scale.value].python;
    const mode = channels === 1 ? "L" : "RGB";
    const integers = this.input.datatype === "UINT8";
    const axes = channels === 1 ? `x.reshape(1, ${last ? `${height}, ${width}, 1` : `1, ${height}, ${width}`})` : last ? "x[None]" : "x.transpose(2, 0, 1)[None]";
    return [
      "import numpy as np",
      "from PIL import Image",
      "",
      `image = Image.open(${JSON.stringify(this.loaded)}).convert("${mode}").resize((${width}, ${height}))`,
      `x = np.asarray(image, np.${integers ? "uint8" : "float32"})`,
      ...(scale ? [scale] : []),
      `body = {"inputs": ${axes}.tolist()}`,
    ];
  }

  ask() {
    return this.answer.ask({ body: JSON.stringify({ inputs: [this.values()] }), make: this.python() }, this.loaded);
  }
}
