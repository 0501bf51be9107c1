// Whether requests share a run of a model, and the choices in its settings.

import { fact, h } from "./dom.js";
import * as format from "./format.js";

const DECIDED = {
  proof: "proven from the graph",
  trial: "found by a trial with random rows",
  settings: "set in panther.toml",
  run: "off because a run returned a different number of rows",
};

const axis = (value) => (value === null ? "shared" : `axis ${value}`);
const axes = (found) => Object.entries(found).map(([name, value]) => `${name} ${axis(value)}`).join(", ");

/** A pill: batched or not, with the reason as its title. An operator's choice is not a warning. */
export function batchingPill({ batched, batching }) {
  const tone = batched || batching.decided_by === "settings" ? "" : "warn";
  return h("span", { class: `pill ${tone}`, title: batching.reason }, batched ? "batched" : "not batched");
}

/** The part of the page that shows whether requests share a run, and why, with its pill. */
export function batchingBlock({ runtime }, shortly) {
  const { batching, session } = runtime;
  const tensors = Object.keys(batching.input_axes).length > 0;
  return h(
    "section",
    { class: "block" },
    h("h3", {}, h("span", {}, "Batching ", shortly), h("small", {}, `${DECIDED[batching.decided_by]}`)),
    h("p", { class: "why" }, h("strong", {}, runtime.batched ? "Requests share runs: " : "Each request runs separately: "), batching.reason, "."),
    h(
      "dl",
      { class: "counts" },
      tensors && fact("Rows of inputs", axes(batching.input_axes)),
      tensors && fact("Rows of outputs", axes(batching.output_axes)),
      fact("Graph optimization", session.graph_optimization),
      session.wanted_providers.length > 0 && fact("Providers", session.wanted_providers.map(format.provider).join(", ")),
      session.custom_ops.length > 0 && fact("Custom operators", session.custom_ops.join(", ")),
    ),
  );
}
