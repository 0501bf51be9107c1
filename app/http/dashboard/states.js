// The state of a model in one word, and the order in which models are listed: broken ones first.

import { h } from "./dom.js";

const TONES = { READY: "good", LOADING: "warn", UNAVAILABLE: "bad" };

/** A version that the version policy excludes is not a fault. */
export const notWanted = ({ state, reason }) =>
  state === "UNAVAILABLE" && (reason === "unloaded" || (reason ?? "").startsWith("not selected"));

export const pill = (text, tone, title) => h("span", { class: `pill ${tone ?? ""}`, title }, text);

export const statePill = (report) =>
  notWanted(report) ? pill("not served") : pill(report.state.toLowerCase(), TONES[report.state]);

/** In the order of the list; `reason` is shown beside the name. */
const STATES = [
  { key: "broken", name: "Broken", tone: "bad" },
  { key: "behind", name: "Old version", tone: "warn" },
  { key: "loading", name: "Loading", tone: "warn" },
  { key: "ready", name: "Ready", tone: "good" },
  { key: "unloaded", name: "Unloaded", tone: "" },
];
export const ALL = STATES.map((state) => state.key);
export const state = (key) => STATES.find((one) => one.key === key);

/** The state of a model from the reports of its versions, and the version that gives the reason. */
export function judge(reports) {
  const served = reports.find((report) => report.served_by_default);
  const failed = reports.filter((report) => report.state === "UNAVAILABLE" && !notWanted(report)).at(-1);
  if (!served) {
    if (failed) return { key: "broken", because: failed };
    if (reports.some((report) => report.state === "LOADING")) return { key: "loading", because: null };
    return { key: "unloaded", because: reports.at(-1) };
  }
  if (failed ?? served.reason) return { key: "behind", because: failed ?? served };
  if (reports.some((report) => report.state === "LOADING")) return { key: "loading", because: null };
  return { key: "ready", because: null };
}
