// Differences of polled counters, over two minutes, an hour and a day.

export const RANGES = [
  { name: "2 min", seconds: 120, binSeconds: 0 },
  { name: "1 h", seconds: 3600, binSeconds: 30 },
  { name: "24 h", seconds: 86_400, binSeconds: 600 },
];

const SUMS = ["requests", "failed", "rows", "runs", "executedRows"];

/** Buckets of a histogram of /stats by their upper bounds. */
const buckets = (histogram) => new Map(histogram.upper_bounds_ms.map((bound, index) => [bound, histogram.counts[index]]));

/** The quantile of buckets by upper bound in ms; null if they are empty. */
export function quantile(counted, part) {
  const sorted = [...counted].sort(([a], [b]) => (a ?? Infinity) - (b ?? Infinity));
  const total = sorted.reduce((sum, [, count]) => sum + count, 0);
  if (total <= 0) return null;
  let below = 0;
  for (const [bound, count] of sorted) {
    below += count;
    // The middle of the bucket; its bounds are a tenth apart.
    if (below >= part * total) return bound === null ? 100_000 : bound * 0.95;
  }
  return null;
}

/** Counts between two readings of `live`; null after a restart of the server. */
function difference(before, now) {
  const [old, live] = [before.live, now.live];
  const sums = {
    requests: live.requests - old.requests,
    failed: live.failed - old.failed,
    rows: live.rows - old.rows,
    runs: live.executions - old.executions,
    executedRows: live.executed_rows - old.executed_rows,
  };
  if (SUMS.some((name) => sums[name] < 0) || now.seconds <= before.seconds) return null;
  const times = buckets(live.histograms.request);
  for (const [bound, count] of buckets(old.histograms.request)) times.set(bound, (times.get(bound) ?? 0) - count);
  return { from: before.seconds, to: now.seconds, ...sums, times: new Map([...times].filter(([, count]) => count > 0)) };
}

/** Merge two neighbouring intervals: counts add up, so only the finer time is lost. */
function merged(first, second) {
  const times = new Map(first.times);
  for (const [bound, count] of second.times) times.set(bound, (times.get(bound) ?? 0) + count);
  const sums = Object.fromEntries(SUMS.map((name) => [name, first[name] + second[name]]));
  return { from: first.from, to: second.to, ...sums, times };
}

/** The history of a model at three resolutions. */
export class History {
  constructor() {
    this.last = null;
    this.intervals = RANGES.map(() => []);
  }

  /** Add a reading of `live` at a time in seconds. */
  add(live, seconds) {
    const before = this.last;
    this.last = { live, seconds };
    const interval = before && difference(before, this.last);
    if (!interval) return;
    RANGES.forEach((range, index) => {
      const kept = this.intervals[index];
      const latest = kept.at(-1);
      const joins = latest && latest.to === interval.from && interval.to - latest.from <= range.binSeconds;
      if (joins) kept[kept.length - 1] = merged(latest, interval);
      else kept.push(interval);
      while (kept[0].to < seconds - range.seconds) kept.shift();
    });
  }

  /** The intervals of a range as rates, quantiles and means. */
  points(index) {
    return this.intervals[index].map((interval) => ({
      from: interval.from,
      to: interval.to,
      rate: interval.requests / (interval.to - interval.from),
      failures: interval.failed,
      p50: quantile(interval.times, 0.5),
      p99: quantile(interval.times, 0.99),
      batch: interval.runs ? interval.executedRows / interval.runs : null,
    }));
  }

  /** The request rate of the last reading; null before there were two. */
  get rate() {
    const latest = this.intervals[0].at(-1);
    return latest ? latest.requests / (latest.to - latest.from) : null;
  }
}
