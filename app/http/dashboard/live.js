// What a model does right now.

import { Chart } from "./charts.js";
import { fact, h } from "./dom.js";
import * as format from "./format.js";

const rate = (value) => (value === null ? format.UNKNOWN : `${format.short(value)}/s`);
const rows = (value) => (value === null ? format.UNKNOWN : format.short(value));

/** Charts and counts of one version. */
export class Live {
  constructor() {
    this.charts = {
      rate: new Chart("Requests", rate),
      latency: new Chart("Latency, p50", format.milliseconds),
      batch: new Chart("Rows in a run", rows),
    };
    this.counts = h("dl", { class: "counts" });
    this.element = h(
      "section",
      { class: "block" },
      h("h3", {}, "Live"),
      h("div", { class: "charts" }, ...Object.values(this.charts).map((chart) => chart.element)),
      this.counts,
    );
  }

  update(report, series) {
    const pick = (name) => series.points.map((point) => point[name] ?? null);
    this.charts.rate.update(pick("rate"));
    this.charts.latency.update(pick("p50"), pick("p99"));
    this.charts.batch.update(pick("batch"));
    const { live } = report;
    const spread = (name) => {
      const { p50, p99 } = live.percentiles_ms[name];
      return p50 === null ? format.UNKNOWN : `${format.milliseconds(p50)}, p99 ${format.milliseconds(p99)}`;
    };
    const reasons = Object.entries(live.failures_by_reason).map(([reason, count]) => `${format.integer(count)} ${reason}`);
    this.counts.replaceChildren(
      fact("Requests", format.integer(live.requests), { "data-figure": "requests" }),
      fact("Rows", format.integer(live.rows), { "data-figure": "rows" }),
      fact("Mean rows in a run", rows(live.mean_batch_rows)),
      fact("Waiting", format.integer(live.waiting)),
      fact("Queue", spread("queue")),
      fact("Compute", spread("compute_infer")),
      fact("Failed", reasons.length ? reasons.join(", ") : "none", live.failed ? { class: "failing" } : {}),
    );
  }
}
