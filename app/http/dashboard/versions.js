// Versions of a model, and the actions on them.

import * as api from "./api.js";
import { h } from "./dom.js";
import * as format from "./format.js";
import { statePill } from "./states.js";

function row(report, told, details) {
  const runtime = details?.find((one) => one.version === report.version)?.runtime;
  const runs = runtime ? `${format.provider(runtime.provider)}, ${format.counted(runtime.num_threads, "thread")}` : format.UNKNOWN;
  const reason = report.reason && report !== told ? ` ${report.reason}` : "";
  return h(
    "tr",
    {},
    h("th", { scope: "row", "data-label": "Version" }, report.version, report.served_by_default && " (served)"),
    h("td", { "data-label": "State" }, h("span", {}, statePill(report), reason)),
    h("td", { "data-label": "Runs on", title: runtime?.device_reason }, runs),
    h("td", { "data-label": "Loaded" }, format.moment(report.loaded_at_s)),
    h("td", { class: "number", "data-label": "Requests" }, format.integer(report.live?.requests)),
  );
}

/** The table, and buttons to load again and to benchmark. */
export class Versions {
  constructor(name, refresh) {
    this.name = name;
    this.refresh = refresh;
    this.body = h("tbody");
    this.said = h("output");
    this.reload = h("button", { type: "button", onclick: () => this.act("Loading …", () => this.load()) }, "Reload from disk");
    this.measure = h(
      "button",
      { type: "button", onclick: () => this.act("Benchmarking against a dense twin …", () => this.benchmark()) },
      "Benchmark against dense",
    );
    this.actions = h("div", { class: "actions" }, this.reload, this.measure);
    this.closed = h("p", {}, "To reload or benchmark from this page, set PANTHER_MODEL_CONTROL=explicit.");
    this.element = h(
      "section",
      { class: "block" },
      h("h3", {}, "Versions"),
      h(
        "div",
        { class: "scroll", tabindex: "0", role: "region", "aria-label": `Versions of ${name}` },
        h(
          "table",
          { class: "stacks" },
          h("thead", {}, h("tr", {}, ...["Version", "State", "Runs on", "Loaded"].map((text) => h("th", { scope: "col" }, text)), h("th", { scope: "col", class: "number" }, "Requests"))),
          this.body,
        ),
      ),
      this.actions,
      h("div", { class: "actions" }, this.closed, this.said),
    );
  }

  /** Show the reports; the model's row already shows the reason of `told`. */
  update(reports, control, told, details) {
    this.body.replaceChildren(...reports.toReversed().map((report) => row(report, told, details)));
    const open = control === "explicit";
    this.actions.hidden = !open;
    this.closed.hidden = open;
    this.measure.hidden = !details?.some((report) => report.layers?.length);
  }

  async act(begin, action) {
    this.reload.disabled = this.measure.disabled = true;
    this.said.textContent = begin;
    try {
      this.said.textContent = await action();
    } catch (error) {
      this.said.textContent = error.message;
    } finally {
      this.reload.disabled = this.measure.disabled = false;
      await this.refresh();
    }
  }

  async load() {
    await api.reload(this.name);
    return "Loaded.";
  }

  async benchmark() {
    const { batches } = await api.benchmark(this.name);
    const cells = batches.map((one) => `batch ${one.rows}: ${format.milliseconds(one.model_median_us / 1000)}, ${format.short(one.ratio)}× of dense`);
    return `${cells.join("; ")}.`;
  }
}
