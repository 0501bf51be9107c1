// From counters read every few seconds to what happened in between.

export const LENGTH = 60;

/** The quantile of the difference of two histograms as /stats gives them; null where nothing was added. */
export function quantile(now, before, part) {
  const old = new Map((before?.upper_bounds_ms ?? []).map((bound, index) => [bound, before.counts[index]]));
  const added = now.upper_bounds_ms.map((bound, index) => [bound, now.counts[index] - (old.get(bound) ?? 0)]);
  const total = added.reduce((sum, [, count]) => sum + count, 0);
  if (total <= 0) return null;
  let below = 0;
  for (const [bound, count] of added) {
    below += count;
    // The middle of the bucket, whose bounds lie a tenth apart.
    if (below >= part * total) return bound === null ? 100_000 : bound * 0.95;
  }
  return null;
}

/** What a model did of late: one point for each reading. */
export class Series {
  constructor() {
    this.points = [];
    this.last = null;
  }

  /** Take a reading of `live` at a time in seconds. */
  add(live, seconds) {
    const before = this.last;
    this.last = { live, seconds };
    if (before === null) return;
    const elapsed = seconds - before.seconds;
    const requests = live.requests - before.live.requests;
    const runs = live.executions - before.live.executions;
    if (requests < 0 || runs < 0 || elapsed <= 0) {
      // The server was started again: what came before says nothing about the difference.
      this.points.push({ rate: null, p50: null, p99: null, batch: null, failures: 0 });
    } else {
      const [now, old] = [live.histograms.request, before.live.histograms.request];
      this.points.push({
        rate: requests / elapsed,
        rows: (live.rows - before.live.rows) / elapsed,
        p50: quantile(now, old, 0.5),
        p99: quantile(now, old, 0.99),
        batch: runs ? (live.executed_rows - before.live.executed_rows) / runs : null,
        failures: live.failed - before.live.failed,
      });
    }
    this.points = this.points.slice(-LENGTH);
  }
}
