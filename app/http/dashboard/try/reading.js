// Interpretation of a response: classes with probabilities, labels, numbers with units.

const sigmoid = (logit) => 1 / (1 + Math.exp(-logit));

/** The values of one row as a list; nested lists are flattened. */
const flat = (value) => (Array.isArray(value) ? value.flat(Infinity) : [value]);

function softmax(logits) {
  const most = Math.max(...logits);
  const powers = logits.map((logit) => Math.exp(logit - most));
  const sum = powers.reduce((a, b) => a + b, 0);
  return powers.map((power) => power / sum);
}

const ranked = (items) => items.toSorted((a, b) => b.part - a.part);

function classesOf(values, output) {
  const parts = output.kind === "logits" ? softmax(values) : values;
  return ranked(parts.map((part, index) => ({ name: output.labels?.[index] ?? `class ${index}`, part })));
}

function fromOutput(row, output) {
  const values = flat(row);
  const numeric = values.every((value) => typeof value === "number");
  if (numeric && output?.kind === "multilabel") {
    const items = values.map((value, index) => ({ name: output.labels?.[index] ?? `label ${index}`, part: sigmoid(value) }));
    return { kind: "labels", items: ranked(items) };
  }
  if (numeric && (output?.kind === "logits" || output?.kind === "probabilities") && values.length > 1) {
    return { kind: "classes", items: classesOf(values, output) };
  }
  const names = output?.labels?.length === values.length ? output.labels : null;
  const items = values.map((value, index) => ({ name: names?.[index] ?? (values.length > 1 ? `[${index}]` : output?.name), value }));
  return { kind: "numbers", items, unit: output?.unit };
}

/** The response to a plain request, row by row: {kind: classes, labels or numbers, items, unit}. */
export function read(answer, model) {
  const described = new Map(model.outputs.map((output) => [output.name, output]));
  if (answer.predictions) {
    return answer.predictions.map(({ label, probability, top_k: top }) => ({
      kind: "classes",
      items: (top ?? [{ label, probability }]).map((one) => ({ name: one.label, part: one.probability })),
    }));
  }
  const names = Object.keys(answer.outputs);
  const name = names.find((one) => described.get(one)?.kind) ?? names[0];
  const rows = answer.outputs[name];
  return flat(rows).length ? (Array.isArray(rows) ? rows : [rows]).map((row) => fromOutput(row, described.get(name))) : [];
}
