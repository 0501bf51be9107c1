// Live counters of a model, and their history while the page is open.

import { Chart } from "./charts.js";
import { choice, fact, h } from "./dom.js";
import * as format from "./format.js";
import { RANGES } from "./history.js";

const rate = (value) => (value === null ? format.UNKNOWN : `${format.short(value)}/s`);
const rows = (value) => (value === null ? format.UNKNOWN : format.short(value));

/** Charts and counts of one version. */
export class Live {
  constructor() {
    this.range = 0;
    this.charts = {
      rate: new Chart("Requests", rate),
      latency: new Chart("Latency, p50", format.milliseconds),
      batch: new Chart("Rows per run", rows),
    };
    this.counts = h("dl", { class: "counts" });
    const ranges = choice("Time range of the charts", RANGES.map((range) => range.name), (index) => {
      this.range = index;
      if (this.history) this.draw();
    });
    this.element = h(
      "section",
      { class: "block" },
      h("h3", {}, "Live", ranges),
      h("div", { class: "charts" }, ...Object.values(this.charts).map((chart) => chart.element)),
      this.counts,
    );
  }

  draw() {
    const range = RANGES[this.range];
    const points = this.history.points(this.range);
    const now = this.history.last.seconds;
    const pick = (name) => points.map(({ from, to, [name]: value }) => ({ from, to, value }));
    this.charts.rate.update(range, now, pick("rate"));
    this.charts.latency.update(range, now, pick("p50"), pick("p99"));
    this.charts.batch.update(range, now, pick("batch"));
  }

  update(live, history) {
    this.history = history;
    this.draw();
    const spread = (name) => {
      const { p50, p99 } = live.percentiles_ms[name];
      return p50 === null ? format.UNKNOWN : `${format.milliseconds(p50)}, p99 ${format.milliseconds(p99)}`;
    };
    const reasons = Object.entries(live.failures_by_reason).map(([reason, count]) => `${format.integer(count)} ${reason}`);
    this.counts.replaceChildren(
      fact("Requests", format.integer(live.requests), { "data-figure": "requests" }),
      fact("Rows", format.integer(live.rows), { "data-figure": "rows" }),
      fact("Mean rows per run", rows(live.mean_batch_rows)),
      fact("Waiting", format.integer(live.waiting)),
      fact("Whole request", spread("request")),
      fact("Queue", spread("queue")),
      fact("Compute", spread("compute_infer")),
      fact("Failed", reasons.length ? reasons.join(", ") : "none", live.failed ? { class: "failing" } : {}),
    );
  }
}
