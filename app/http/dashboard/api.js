// Requests to the server that the page came from; paths are relative, so that a prefix of a proxy does no harm.

/** The server's own word on what went wrong. */
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
  // No storage: the key lasts as long as the page.
}

/** Send this API key with every request, in this tab and for as long as it is open. */
export function useKey(value) {
  key = value;
  try {
    sessionStorage.setItem(KEY, value);
  } catch {
    // As above.
  }
}

/** Call this where the server asks for a key, or for another: with whether one was sent. */
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
    // Not ours: a proxy's page, say.
  }
  if (!answer.ok) throw new ApiError(document?.error ?? `${answer.status} ${answer.statusText}`, answer.status);
  return document;
}

const post = (path, body, type = "application/json") =>
  call(path, { method: "POST", headers: { "content-type": type }, body: body ?? "{}" });
const name = encodeURIComponent;

/** Whether requests carry an API key. */
export const keyed = () => Boolean(key);
/** States and counters of all models: small, for it is read every few seconds. */
export const live = () => call("stats?live=true&histograms=true", {}, 10_000);
/** Everything about one model. */
export const details = async (model) => (await call(`models/${name(model)}/stats`, {}, 10_000)).models;
export const models = () => call("models", {}, 10_000);
/** Ask a version; the query begins with a question mark. */
export const predict = (model, version, { body, type, query = "" }) =>
  post(`models/${name(model)}/versions/${name(version)}/predict${query}`, body, type);
/** The whole address of a model's predictions, for other programs. */
export const address = (model, query = "") => new URL(`models/${name(model)}/predict${query}`, document.baseURI).href;
export const reload = (model) => post(`v2/repository/models/${name(model)}/load`);
export const benchmark = (model) => post(`models/${name(model)}/benchmark`);
export const digits = () => call("dashboard/samples/digits.json");
