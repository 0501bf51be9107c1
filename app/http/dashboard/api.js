// Requests to the server of the page; paths are relative, so they work behind a proxy with a path prefix.

/** The server's message for a failure. */
export class ApiError extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

const TIMEOUT_MS = 120_000;
const KEY = "panther-api-key";

let key = null;
let denied = () => {};
try {
  key = sessionStorage.getItem(KEY);
} catch {
  // No storage: the key is kept only while the page is open.
}

/** Send this API key with every request, in this tab while it is open. */
export function useKey(value) {
  key = value;
  try {
    sessionStorage.setItem(KEY, value);
  } catch {
    // No storage.
  }
}

/** Call this when the server requires a key, or another one; the argument says whether one was sent. */
export function onDenied(listener) {
  denied = listener;
}

async function call(path, options = {}, timeoutMs = TIMEOUT_MS) {
  const headers = { ...options.headers, ...(key && { authorization: `Bearer ${key}` }) };
  const answer = await fetch(path, { cache: "no-store", signal: AbortSignal.timeout(timeoutMs), ...options, headers });
  if (answer.status === 401 || (answer.status === 403 && key)) denied(Boolean(key));
  const text = await answer.text();
  let document = null;
  try {
    document = text ? JSON.parse(text) : null;
  } catch {
    // Not a response of the server, for example a proxy's page.
  }
  if (!answer.ok) throw new ApiError(document?.error ?? `${answer.status} ${answer.statusText}`, answer.status);
  return document;
}

const post = (path, body, type = "application/json") =>
  call(path, { method: "POST", headers: { "content-type": type }, body: body ?? "{}" });
const name = encodeURIComponent;

/** Whether requests carry an API key. */
export const keyed = () => Boolean(key);
/** States and counters of all models; small, because the page polls it every few seconds. */
export const live = () => call("stats?live=true&histograms=true", {}, 10_000);
/** Everything about one model. */
export const details = async (model) => (await call(`models/${name(model)}/stats`, {}, 10_000)).models;
export const models = () => call("models", {}, 10_000);
/** Run a version; the query starts with a question mark. */
export const predict = (model, version, { body, type, query = "" }) =>
  post(`models/${name(model)}/versions/${name(version)}/predict${query}`, body, type);
/** The absolute URL of a model's predictions, for other programs. */
export const address = (model, query = "") => new URL(`models/${name(model)}/predict${query}`, document.baseURI).href;
export const reload = (model) => post(`v2/repository/models/${name(model)}/load`);
export const benchmark = (model) => post(`models/${name(model)}/benchmark`);
export const digits = () => call("dashboard/samples/digits.json");
