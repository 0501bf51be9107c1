// One model of the page: a row of the list, and a card that opens below it.

import * as api from "./api.js";
import { batchingBlock, batchingPill } from "./batching.js";
import { curveBlock } from "./curve.js";
import { fact, h } from "./dom.js";
import * as format from "./format.js";
import { History } from "./history.js";
import { Live } from "./live.js";
import { layersBlock } from "./layers.js";
import { latencyBlock, savingsBlock, tensorsBlock } from "./savings.js";
import { judge, pill, state } from "./states.js";
import { tryForm } from "./try/form.js";
import { Versions } from "./versions.js";

// Batching may end while a model runs, so an open card reads it again.
const DETAILS_S = 30;

/** A row with the state and the request rate of a model, and its card: savings, live counters, a form, versions. */
export class ModelView {
  constructor(name, refresh, onToggle) {
    this.name = name;
    this.history = new History();
    this.refresh = refresh;
    this.shown = {};
    this.open = false;
    this.details = null;
    this.pills = h("span", { class: "pills" });
    this.figures = h("dl", { class: "glance" });
    this.gain = h("p", { class: "gain" });
    this.reason = h("p", { class: "reason" });
    const body = `card-${encodeURIComponent(name)}`;
    this.button = h("button", { type: "button", "aria-expanded": "false", "aria-controls": body, onclick: () => onToggle(this) }, name);
    this.card = h("div", { class: "card", id: body });
    this.card.hidden = true;
    this.element = h(
      "article",
      { class: "model", "aria-label": `Model ${name}`, "data-model": name },
      h("header", {}, h("h2", {}, this.button), this.pills, this.gain, this.figures, this.reason),
      this.card,
    );
  }

  /** Open or close the card. */
  toggle(open) {
    this.open = open;
    this.button.setAttribute("aria-expanded", String(open));
    this.card.hidden = !open;
    if (open && this.reports) this.showCard();
  }

  /** Update the parts that differ; a form that is being filled in stays. */
  once(part, shownState, make) {
    const key = JSON.stringify(shownState);
    if (this.shown[part] === key) return;
    this.shown[part] = key;
    make();
  }

  /** Show the latest data: reports of the versions, the summary of /models, and the time of both in seconds. */
  update(reports, summary, control, seconds) {
    Object.assign(this, { reports, summary, control });
    this.judged = judge(reports);
    this.served = reports.find((report) => report.served_by_default);
    const live = this.served?.live;
    const key = live && `${this.served.version} ${this.served.loaded_at_s}`;
    if (live) this.history.add(live, seconds);
    if (key !== this.loaded) this.details = null;
    this.loaded = key;
    this.showRow();
    if (this.open) this.showCard();
  }

  showRow() {
    const { served, summary, judged } = this;
    const { name, tone } = state(judged.key);
    this.once("pills", [judged.key, served?.version, summary?.default, summary?.provider], () =>
      this.pills.replaceChildren(
        ...[
          pill(judged.key === "ready" ? "ready" : name.toLowerCase(), tone),
          served && pill(`version ${served.version}`),
          summary?.default && pill("default", "", "POST /predict uses this model"),
          summary?.provider && pill(format.provider(summary.provider)),
        ].filter(Boolean),
      ),
    );
    const because = judged.because;
    this.once("reason", [because?.reason, because?.version, judged.key], () => {
      this.reason.textContent = because ? (served && because !== served ? `Version ${because.version}: ${because.reason}` : because.reason) : "";
      this.reason.hidden = !because || judged.key === "unloaded";
    });
    const live = served?.live;
    const saved = summary?.savings;
    const [reduction, ratio] = [saved?.bytes_reduction_percent ?? 0, saved?.ratio_to_dense_twin ?? 1];
    const smaller = reduction > 0 && `${format.percent(reduction)} smaller`;
    const faster = ratio < 0.95 && `${format.short(1 / ratio)}× as fast as dense`;
    this.once("gain", [smaller, faster], () => (this.gain.textContent = [smaller, faster].filter(Boolean).join(", ")));
    const figures = live
      ? [
          live.failed > 0 && fact("failed", format.integer(live.failed), { class: "failing" }),
          fact("requests", format.integer(live.requests)),
          fact("rate", this.history.rate === null ? format.UNKNOWN : `${format.short(this.history.rate)}/s`),
          fact("p50", format.milliseconds(live.percentiles_ms.request.p50)),
        ]
      : [];
    this.figures.replaceChildren(...figures.filter(Boolean));
  }

  showCard() {
    this.versions ??= new Versions(this.name, this.refresh);
    const { served } = this;
    if (!served?.live) {
      this.once("card", "not loaded", () => this.card.replaceChildren(this.versions.element));
    } else {
      this.live ??= new Live();
      this.once("card", "loaded", () => {
        this.about = h("div", { class: "about" });
        this.form = h("section", { class: "block", "aria-label": `Try ${this.name}` });
        delete this.shown.form;
        delete this.shown.details;
        const columns = h("div", { class: "columns" }, h("div", {}, this.form, this.live.element), this.about);
        this.card.replaceChildren(columns, this.versions.element);
      });
      this.live.update(served.live, this.history);
      this.readDetails();
      this.showForm();
    }
    this.versions.update(this.reports, this.control, this.judged.because, this.details);
  }

  showForm() {
    const { summary, served } = this;
    if (!summary?.inputs || summary.version !== served.version) return;
    this.once("form", [summary.inputs, summary.outputs, summary.preprocessing, summary.version], () =>
      this.form.replaceChildren(h("h3", {}, "Try it"), tryForm(summary).element),
    );
  }

  /** Read the data of the open card now and then. */
  async readDetails() {
    const now = performance.now() / 1000;
    if (this.reading || (this.details && now - this.readAt < DETAILS_S)) return;
    const loaded = this.loaded;
    this.reading = true;
    try {
      const details = await api.details(this.name);
      this.readAt = performance.now() / 1000;
      if (loaded === this.loaded) this.showDetails(details);
    } catch {
      // The next reading of the counters reports the problem, and calls this again.
    } finally {
      this.reading = false;
    }
  }

  showDetails(details) {
    this.details = details;
    const report = details.find((one) => one.served_by_default);
    if (!report?.runtime) return;
    const { live, state: _, reason: __, ...lasting } = report;
    this.once("details", [lasting, this.summary?.description], () =>
      this.about.replaceChildren(
        ...[
          this.summary?.description && h("p", { class: "description" }, this.summary.description),
          savingsBlock(report),
          curveBlock(report),
          latencyBlock(report),
          ...layersBlock(report),
          this.summary?.inputs && tensorsBlock(this.summary),
          batchingBlock(report, batchingPill(report.runtime)),
        ].filter(Boolean),
      ),
    );
    this.versions.update(this.reports, this.control, this.judged.because, details);
  }
}
