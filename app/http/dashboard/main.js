// Polls the counters every few seconds and shows them. If the server is unreachable, the page keeps trying.

import * as api from "./api.js";
import { fact } from "./dom.js";
import * as format from "./format.js";
import { ModelList } from "./list.js";
import { ModelView } from "./model.js";

const EVERY_MS = 2000;
const SLOWEST_MS = 10_000;
const SHARE = 10; // polling takes at most a tenth of the time: a busy server, or one with many models, is polled less often
const HASH = "#model=";

const page = Object.fromEntries(["state", "server", "alert", "key", "models"].map((id) => [id, document.getElementById(id)]));
const views = new Map();
let list = null;
let summaries = new Map();
let signature = null;
let timer = null;
let reading = null;
let reachable = false;

function pill(text, tone) {
  if (page.state.textContent !== text) page.state.textContent = text;
  page.state.className = `pill ${tone}`;
}

function warn(text) {
  if (page.alert.textContent !== text) page.alert.textContent = text;
  page.alert.hidden = !text;
}

/** Why the server is not ready, without the reasons shown in the rows of broken models. */
function toldNowhereElse(problem) {
  let rest = problem ?? "";
  for (const view of views.values()) {
    for (const report of view.reports) if (report.reason) rest = rest.replace(`${report.name}: ${report.reason}`, "");
  }
  return /[^; ]/.test(rest) ? problem : "";
}

function showServer(server) {
  pill(server.ready ? "ready" : "not ready", server.ready ? "good" : "bad");
  const problem = toldNowhereElse(server.not_ready_because);
  warn(problem ? `Not ready: ${problem}` : "");
  const failures = Object.entries(server.failures_without_model).map(([reason, count]) => `${count} ${reason}`);
  page.server.replaceChildren(
    ...[
      fact("Up", format.duration(server.uptime_s)),
      fact("Workers", `${server.workers}, ${format.counted(server.num_threads, "thread")} each`),
      fact("Memory", format.bytes(server.resident_bytes)),
      fact("onnxruntime", server.onnxruntime),
      fact("Version", server.version),
      failures.length ? fact("Matched no model", failures.join(", ")) : null,
    ].filter(Boolean),
  );
}

function byModel(reports) {
  const grouped = new Map();
  for (const report of reports) grouped.set(report.name, [...(grouped.get(report.name) ?? []), report]);
  return grouped;
}

async function learnModels(reports) {
  const now = JSON.stringify(reports.map(({ name, version, state, loaded_at_s: loaded }) => [name, version, state, loaded]));
  if (now === signature) return;
  summaries = new Map((await api.models()).models.map((model) => [model.name, model]));
  signature = now;
}

const linked = () => (location.hash.startsWith(HASH) ? decodeURIComponent(location.hash.slice(HASH.length)) : null);

function open(view) {
  view.toggle(!view.open);
  history.replaceState(null, "", view.open ? HASH + encodeURIComponent(view.name) : location.pathname + location.search);
}

/** Open the model in the URL, or else the only one, or the default one of a few. */
function openFirst() {
  const named = views.get(linked());
  const first = views.size === 1 ? [...views.values()][0] : views.size < 6 && [...views.values()].find((view) => view.summary?.default);
  (named || first)?.toggle?.(true);
  named?.element.scrollIntoView();
}

function showModels(document) {
  const seconds = performance.now() / 1000;
  const grouped = byModel(document.models);
  const begins = list === null;
  list ??= new ModelList(page.models);
  for (const [name, reports] of grouped) {
    if (!views.has(name)) views.set(name, new ModelView(name, read, open));
    views.get(name).update(reports, summaries.get(name), document.server.model_control, seconds);
  }
  for (const name of views.keys()) if (!grouped.has(name)) views.delete(name);
  list.update([...views.values()]);
  if (begins) openFirst();
}

async function readOnce() {
  let document;
  reachable = false;
  try {
    document = await api.live();
    await learnModels(document.models);
  } catch (error) {
    if (error instanceof api.ApiError && error.status === 401) {
      pill("key required", "warn");
      warn(`The server says: ${error.message}`);
      return;
    }
    pill("not reachable", "bad");
    warn(error instanceof api.ApiError ? `The server says: ${error.message}` : "The server does not respond. Retrying.");
    return;
  }
  reachable = true;
  showModels(document);
  showServer(document.server);
}

/** Read now, then every two seconds or less often while the page is visible. */
async function read() {
  clearTimeout(timer);
  const began = performance.now();
  reading ??= readOnce().finally(() => (reading = null));
  await reading;
  clearTimeout(timer);
  const wait = Math.min(SLOWEST_MS, Math.max(EVERY_MS, SHARE * (performance.now() - began)));
  if (!document.hidden) timer = setTimeout(read, reachable ? wait : EVERY_MS);
}

api.onDenied(() => (page.key.hidden = false));
page.key.addEventListener("submit", async (event) => {
  event.preventDefault();
  const field = page.key.querySelector("input");
  api.useKey(field.value.trim());
  field.value = "";
  await reading; // a request that was sent without the key
  page.key.hidden = true;
  read();
});
addEventListener("hashchange", () => views.get(linked())?.toggle(true));
document.addEventListener("visibilitychange", () => (document.hidden ? clearTimeout(timer) : read()));
read();
