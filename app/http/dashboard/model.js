// One model of the page.

import { batchingBlock, batchingPill } from "./batching.js";
import { h } from "./dom.js";
import * as format from "./format.js";
import { Live } from "./live.js";
import { savings } from "./picture.js";
import { tryForm } from "./try.js";
import { statePill, Versions } from "./versions.js";

/** A model with its savings, its live figures, a form to try it, and its versions. */
export class ModelView {
  constructor(name, refresh) {
    this.name = name;
    this.title = h("header");
    this.savings = h("div");
    this.live = new Live();
    this.form = h("section", { class: "block" });
    this.versions = new Versions(name, refresh);
    this.columns = h("div", { class: "columns" }, h("div", {}, this.savings), h("div", {}, this.live.element, this.form));
    this.element = h("article", { class: "model", "aria-label": `Model ${name}`, "data-model": name }, this.title, this.columns, this.versions.element);
    this.shown = {};
  }

  /** Show again what differs from what is shown; a form that is being filled in stays. */
  once(part, state, make) {
    const key = JSON.stringify(state);
    if (this.shown[part] === key) return;
    this.shown[part] = key;
    make();
  }

  update(reports, summary, control, series) {
    const served = reports.find((report) => report.served_by_default) ?? reports.at(-1);
    const loaded = served.live !== undefined;
    const { runtime } = served;
    this.once("title", [served.version, served.state, served.reason, runtime, summary?.description, summary?.default], () =>
      this.title.replaceChildren(
        ...[
          h("h2", {}, this.name),
          h("span", { class: "pill" }, `version ${served.version}`),
          statePill(served.state),
          loaded && h("span", { class: `pill ${runtime.device_reason ? "" : "good"}`, title: runtime.device_reason ?? "" }, `${format.provider(runtime.provider)}, ${format.counted(runtime.num_threads, "thread")}`),
          loaded && batchingPill(runtime),
          summary?.default && h("span", { class: "pill" }, "default"),
          summary?.description && h("p", {}, summary.description),
          served.reason && h("p", { class: "note" }, served.reason),
        ].filter(Boolean),
      ),
    );
    this.columns.hidden = !loaded;
    const { live, ...lasting } = served;
    if (loaded) {
      this.once("savings", lasting, () => this.savings.replaceChildren(...savings(served), batchingBlock(served)));
      this.live.update(served, series);
    }
    if (loaded && summary?.inputs && summary.version === served.version) {
      this.once("form", [summary.inputs, summary.outputs, summary.preprocessing, summary.version], () =>
        this.form.replaceChildren(h("h3", {}, "Try it"), tryForm(summary).element),
      );
    }
    this.versions.update(reports, control);
  }
}
