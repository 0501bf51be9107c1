// Requests to the server that the page came from; paths are relative, so that a prefix of a proxy does no harm.

/** The server's own word on what went wrong. */
export class ApiError extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

const TIMEOUT_MS = 120_000;

async function call(path, options = {}, timeoutMs = TIMEOUT_MS) {
  const answer = await fetch(path, { cache: "no-store", signal: AbortSignal.timeout(timeoutMs), ...options });
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

const post = (path, body) =>
  call(path, { method: "POST", headers: { "content-type": "application/json" }, body: body ?? "{}" });
const name = encodeURIComponent;

export const stats = () => call("stats?histograms=true", {}, 10_000);
export const models = () => call("models", {}, 10_000);
export const predict = (model, version, body) => post(`models/${name(model)}/versions/${name(version)}/predict`, body);
export const reload = (model) => post(`v2/repository/models/${name(model)}/load`);
export const benchmark = (model) => post(`models/${name(model)}/benchmark`);
export const digits = () => call("dashboard/samples/digits.json");
