/** All that is asked of the server. Every function rejects with an ApiError whose message is one line for the reader. */

export class ApiError extends Error {
  /**
   * @param {string} message  one line
   * @param {number} status  HTTP status; 0 where there was no answer
   */
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

const TRIES = 4; // while the server says that its queue is full

/** @returns {Promise<object>} the answer's JSON; null where it has none */
async function call(path, { method = "GET", json, form, signal } = {}) {
  const headers = json === undefined ? {} : { "Content-Type": "application/json" };
  const body = json === undefined ? form : JSON.stringify(json);
  for (let attempt = 1; ; attempt++) {
    const response = await send(path, { method, headers, body, signal });
    if (response.ok) return response.status === 204 ? null : response.json();
    if (response.status === 429 && attempt < TRIES) {
      await pause(1000 * (Number(response.headers.get("Retry-After")) || 1), signal);
      continue;
    }
    throw new ApiError(await reasonOf(response), response.status);
  }
}

async function send(path, options) {
  try {
    return await fetch(path, { credentials: "same-origin", ...options });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("the server does not answer; is seenit serve still running?", 0);
  }
}

async function reasonOf(response) {
  try {
    const { error, details = [] } = await response.json();
    return [error, ...details.map((one) => `${one.where}: ${one.message}`)].join("; ");
  } catch {
    return `the server answered ${response.status}`;
  }
}

function pause(wait_ms, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, wait_ms);
    signal?.addEventListener("abort", () => (clearTimeout(timer), reject(signal.reason)), { once: true });
  });
}

/** Parameters of an address; empty ones are left out, lists are repeated. */
function address(path, params) {
  const search = new URLSearchParams();
  for (const [name, value] of Object.entries(params)) {
    for (const one of Array.isArray(value) ? value : [value]) if (one != null && one !== "") search.append(name, one);
  }
  return `${path}?${search}`;
}

export const health = () => call("/api/health");
export const openSession = (token) => call("/api/session", { method: "POST", json: { token } });
export const info = (signal) => call("/api/info", { signal });
export const folders = (signal) => call("/api/folders", { signal }).then((answer) => answer.folders);
export const tags = (signal) => call("/api/tags", { signal }).then((answer) => answer.tags);

/**
 * Search with indexed and uploaded images.
 * @param {object} request  like, not, region, filters, options as the API has them
 * @param {string[]} ids  indexed images
 * @param {File[]} files  uploads, which count before the ids
 */
export function search(request, ids, files, signal) {
  if (!files.length) return call("/api/search", { method: "POST", json: { ids, ...request }, signal });
  const form = new FormData();
  for (const file of files) form.append("image", file, file.name || "image");
  form.append("request", JSON.stringify(ids.length ? { ids, ...request } : request));
  return call("/api/search", { method: "POST", form, signal });
}

/** Why `image` (an id) is believed to show what the query (an id or a File) shows, or not. */
export function explain(query, image, region, similarity, signal) {
  const request = { image, region, similarity };
  if (!(query instanceof Blob)) return call("/api/explain", { method: "POST", json: { query, ...request }, signal });
  const form = new FormData();
  form.append("query", query, query.name || "image");
  form.append("request", JSON.stringify(request));
  return call("/api/explain", { method: "POST", form, signal });
}

export const images = (params, signal) => call(address("/api/images", params), { signal });
export const dates = (params, signal) => call(address("/api/dates", params), { signal }).then((answer) => answer.months);
export const imageInfo = (id, signal) => call(`/api/images/${encodeURIComponent(id)}/info`, { signal });
export const setTags = (id, tags) => call(`/api/images/${encodeURIComponent(id)}/tags`, { method: "PUT", json: { tags } });
export const skipped = (offset, limit, signal) => call(address("/api/skipped", { offset, limit }), { signal });

export const startIndex = () => call("/api/index", { method: "POST", json: {} });
export const stopTask = (id) => call(`/api/tasks/${encodeURIComponent(id)}/stop`, { method: "POST", json: {} });

export const duplicates = (offset, limit, signal) => call(address("/api/duplicates", { offset, limit }), { signal });
export const findDuplicates = (level, keep) => call("/api/duplicates", { method: "POST", json: { level, keep } });
export const applyChoices = (run, choices, dry_run) =>
  call("/api/duplicates/apply", { method: "POST", json: { run, choices, dry_run } });
export const undoMove = (manifest) => call("/api/duplicates/undo", { method: "POST", json: { manifest } });

export const originalUrl = (id) => `/api/images/${encodeURIComponent(id)}`;
export const thumbnailUrl = (id, size_px) => `/api/images/${encodeURIComponent(id)}/thumbnail?size=${size_px}`;

const SHOWN_BY_BROWSERS = new Set(["JPEG", "PNG", "WEBP", "GIF", "AVIF"]);
const FULL_PX = 4096;

/** The address of all pixels of an image: the file itself where a browser can show it, else a JPEG of it. */
export function fullUrl(image) {
  const shown = SHOWN_BY_BROWSERS.has(image.format) && !image.raw;
  return shown ? originalUrl(image.id) : thumbnailUrl(image.id, FULL_PX);
}

export async function fetchBlob(url, signal) {
  const response = await send(url, { signal });
  if (!response.ok) throw new ApiError(await reasonOf(response), response.status);
  return response.blob();
}
