// Reads /stats every two seconds and shows it. A server that goes away is waited for.

import * as api from "./api.js";
import { fact, h } from "./dom.js";
import * as format from "./format.js";
import { ModelView } from "./model.js";
import { Series } from "./series.js";

const EVERY_MS = 2000;

const page = Object.fromEntries(["state", "server", "alert", "key", "models"].map((id) => [id, document.getElementById(id)]));
const views = new Map();
const series = new Map();
let summaries = new Map();
let signature = null;
let timer = null;
let reading = null;

function pill(text, tone) {
  if (page.state.textContent !== text) page.state.textContent = text;
  page.state.className = `pill ${tone}`;
}

function warn(text) {
  if (page.alert.textContent !== text) page.alert.textContent = text;
  page.alert.hidden = !text;
}

function showServer(server) {
  pill(server.ready ? "ready" : "not ready", server.ready ? "good" : "bad");
  warn(server.ready ? "" : `Not ready: ${server.not_ready_because}`);
  const failures = Object.entries(server.failures_without_model).map(([reason, count]) => `${count} ${reason}`);
  page.server.replaceChildren(
    ...[
      fact("Up", format.duration(server.uptime_s)),
      fact("Workers", `${server.workers}, ${format.counted(server.num_threads, "thread")} each`),
      fact("Memory", format.bytes(server.resident_bytes)),
      fact("onnxruntime", server.onnxruntime),
      fact("Version", server.version),
      failures.length ? fact("Met no model", failures.join(", ")) : null,
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

function showModels(document) {
  const seconds = performance.now() / 1000;
  const grouped = byModel(document.models);
  for (const [name, reports] of grouped) {
    const served = reports.find((report) => report.served_by_default && report.live);
    const key = served && `${name}/${served.version}`;
    if (key) {
      if (!series.has(key)) series.set(key, new Series());
      series.get(key).add(served.live, seconds);
    }
    if (!views.has(name)) views.set(name, new ModelView(name, read));
    views.get(name).update(reports, summaries.get(name), document.server.model_control, series.get(key));
  }
  for (const name of views.keys()) if (!grouped.has(name)) views.delete(name);
  const wanted = [...views.values()].map((view) => view.element);
  const same = wanted.length === page.models.children.length && wanted.every((element, index) => page.models.children[index] === element);
  if (!wanted.length) page.models.replaceChildren(h("p", { class: "empty" }, "No model is served."));
  else if (!same) page.models.replaceChildren(...wanted);
}

async function readOnce() {
  try {
    const document = await api.stats();
    await learnModels(document.models);
    showServer(document.server);
    showModels(document);
  } catch (error) {
    if (error instanceof api.ApiError && error.status === 401) {
      pill("key needed", "warn");
      warn(`The server says: ${error.message}`);
      return;
    }
    pill("not reachable", "bad");
    warn(error instanceof api.ApiError ? `The server says: ${error.message}` : "The server does not answer. Trying again every two seconds.");
  }
}

/** Read now, then every two seconds for as long as the page is looked at. */
async function read() {
  clearTimeout(timer);
  reading ??= readOnce().finally(() => (reading = null));
  await reading;
  clearTimeout(timer);
  if (!document.hidden) timer = setTimeout(read, EVERY_MS);
}

api.onDenied(() => (page.key.hidden = false));
page.key.addEventListener("submit", async (event) => {
  event.preventDefault();
  const field = page.key.querySelector("input");
  api.useKey(field.value.trim());
  field.value = "";
  await reading; // one that was asked without it
  page.key.hidden = true;
  read();
});
document.addEventListener("visibilitychange", () => (document.hidden ? clearTimeout(timer) : read()));
read();
