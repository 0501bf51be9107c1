// Numbers as text. null means unknown, and is shown as a dash.

export const UNKNOWN = "–";

const known = (value) => value !== null && value !== undefined && Number.isFinite(value);
const whole = new Intl.NumberFormat("en-US");

/** 401920 -> "401,920" */
export const integer = (value) => (known(value) ? whole.format(value) : UNKNOWN);

/** Three significant digits: 0.0123, 1.23, 123 */
export function short(value) {
  if (!known(value)) return UNKNOWN;
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e6) return `${short(value / 1e6)} M`;
  if (size >= 1e4) return `${short(value / 1e3)} k`;
  if (size >= 100) return whole.format(Math.round(value));
  return String(Number(value.toPrecision(size < 1 ? 2 : 3)));
}

/** 535818 -> "536 k" */
export function compact(value) {
  if (!known(value)) return UNKNOWN;
  if (value >= 1e9) return `${(value / 1e9).toPrecision(3)} G`;
  if (value >= 1e6) return `${(value / 1e6).toPrecision(3)} M`;
  return value >= 1e3 ? `${(value / 1e3).toPrecision(3)} k` : String(value);
}

export function bytes(value) {
  if (!known(value)) return UNKNOWN;
  const units = ["B", "kB", "MB", "GB", "TB"];
  let step = 0;
  while (Math.abs(value) >= 1000 && step < units.length - 1) {
    value /= 1000;
    step += 1;
  }
  return `${step ? value.toPrecision(3) : value} ${units[step]}`;
}

/** 12.34 -> "12.3%", 1234.5 -> "1,235%" */
export const percent = (value) => (known(value) ? `${value >= 1000 ? whole.format(Math.round(value)) : value.toFixed(1)}%` : UNKNOWN);
export const fraction = (value) => (known(value) ? `${(100 * value).toFixed(1)}%` : UNKNOWN);

export function milliseconds(value) {
  if (!known(value)) return UNKNOWN;
  if (value >= 1000) return `${short(value / 1000)} s`;
  return value >= 1 ? `${short(value)} ms` : `${short(1000 * value)} µs`;
}

/** 93784 -> "1 d 2 h" */
export function duration(seconds) {
  if (!known(seconds)) return UNKNOWN;
  const parts = [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]];
  const first = Math.max(0, parts.findIndex(([size]) => seconds >= size));
  if (seconds < 1) return "0 s";
  return parts
    .slice(first, first + 2)
    .map(([size, unit], index) => [Math.floor((index ? seconds % parts[first][0] : seconds) / size), unit])
    .filter(([count], index) => count || !index)
    .map(([count, unit]) => `${count} ${unit}`)
    .join(" ");
}

export const moment = (seconds) => (known(seconds) ? new Date(1000 * seconds).toLocaleString() : UNKNOWN);

/** 1, "thread" -> "1 thread" */
export const counted = (count, noun) => `${whole.format(count)} ${noun}${count === 1 ? "" : "s"}`;

/** "CPUExecutionProvider" -> "CPU" */
export const provider = (name) => name.replace("ExecutionProvider", "");

/** Reduction against dense, computed from the counts: rounding a rounded number again is sometimes wrong. */
export function reduction(dense, ours) {
  if (!dense) return UNKNOWN;
  const value = 100 * (1 - ours / dense);
  return `${value < 0 ? "+" : "−"}${percent(Math.abs(value))}`;
}
