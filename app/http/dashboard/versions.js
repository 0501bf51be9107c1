// Versions of a model, and what may be done with them.

import * as api from "./api.js";
import { h } from "./dom.js";
import * as format from "./format.js";

const TONES = { READY: "good", LOADING: "warn", UNAVAILABLE: "bad" };

export const statePill = (state) => h("span", { class: `pill ${TONES[state] ?? ""}` }, state.toLowerCase());

// A version that is not to be served is no fault.
const notWanted = (report) => report.reason === "unloaded" || (report.reason ?? "").startsWith("not selected");

function row(report) {
  const runs = report.runtime ? `${format.provider(report.runtime.provider)}, ${format.counted(report.runtime.num_threads, "thread")}` : format.UNKNOWN;
  return h(
    "tr",
    {},
    h("th", { scope: "row" }, report.version, report.served_by_default && " (served)"),
    h("td", {}, notWanted(report) ? h("span", { class: "pill" }, "not served") : statePill(report.state), report.reason && ` ${report.reason}`),
    h("td", {}, runs),
    h("td", {}, format.moment(report.loaded_at_s)),
    h("td", { class: "number" }, format.integer(report.live?.requests)),
  );
}

/** The table, and buttons to load again and to measure. */
export class Versions {
  constructor(name, refresh) {
    this.name = name;
    this.refresh = refresh;
    this.body = h("tbody");
    this.said = h("output");
    this.reload = h("button", { type: "button", onclick: () => this.act("Loading …", () => this.load()) }, "Reload from disk");
    this.measure = h(
      "button",
      { type: "button", onclick: () => this.act("Measuring beside a dense twin …", () => this.benchmark()) },
      "Measure against dense",
    );
    this.actions = h("div", { class: "actions" }, this.reload, this.measure);
    this.closed = h("p", {}, "Reloading and measuring from here need PANTHER_MODEL_CONTROL=explicit.");
    this.element = h(
      "section",
      { class: "block" },
      h("h3", {}, "Versions"),
      h(
        "div",
        { class: "scroll", tabindex: "0", role: "region", "aria-label": `Versions of ${name}` },
        h(
          "table",
          {},
          h("thead", {}, h("tr", {}, ...["Version", "State", "Runs on", "Loaded"].map((text) => h("th", { scope: "col" }, text)), h("th", { scope: "col", class: "number" }, "Requests"))),
          this.body,
        ),
      ),
      this.actions,
      h("div", { class: "actions" }, this.closed, this.said),
    );
  }

  update(reports, control) {
    this.body.replaceChildren(...reports.toReversed().map(row));
    const open = control === "explicit";
    this.actions.hidden = !open;
    this.closed.hidden = open;
    this.measure.hidden = !reports.some((report) => report.layers?.length);
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
