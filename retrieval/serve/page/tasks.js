/** Runs of the server (indexing, finding duplicates): their progress as it comes, and when the index changed. */

import * as api from "./api.js";
import { button, clean, count, el, notify } from "./dom.js";

/** Dispatches `task` (detail: the task) and `index` (detail: {images}). */
export const events = new EventTarget();

const KINDS = { index: "Indexing", duplicates: "Finding duplicates" };
let newest = null;

/** The newest task; null where there was none. */
export const newestTask = () => newest;

/** Listen from now on, and show a running task in `place`. */
export function watchTasks(place) {
  const source = new EventSource("/api/tasks/events");
  source.addEventListener("task", (event) => {
    const task = JSON.parse(event.data);
    const ended = newest?.id === task.id && newest.state === "running" && task.state !== "running";
    newest = task;
    place.replaceChildren(...(task.state === "running" ? [progress(task)] : []));
    if (ended) tellEnd(task);
    events.dispatchEvent(new CustomEvent("task", { detail: task }));
  });
  source.addEventListener("index", (event) => events.dispatchEvent(new CustomEvent("index", { detail: JSON.parse(event.data) })));
}

/** Bring the index in line with its folders. */
export async function updateIndex() {
  try {
    await api.startIndex();
  } catch (error) {
    notify(error.message, { error: true });
  }
}

/** A bar with what is being done; the bar has no end where that is not known. */
export function progress(task) {
  const known = task.total > 0;
  const words = known ? `${task.done.toLocaleString("en")} of ${task.total.toLocaleString("en")}` : task.done ? count(task.done, "image") : "";
  return el(
    "div",
    { class: "progress" },
    el("p", {}, `${KINDS[task.kind] ?? clean(task.kind)}: ${clean(task.stage)} ${words}`),
    el("progress", { max: known ? task.total : 1, value: known ? task.done : null, "aria-label": KINDS[task.kind] ?? "Progress" }),
    button("Stop", { class: "quiet", on: { click: () => api.stopTask(task.id).catch((error) => notify(error.message, { error: true })) } }),
  );
}

function tellEnd(task) {
  const name = KINDS[task.kind] ?? task.kind;
  if (task.state === "failed") notify(`${name} failed: ${task.message}`, { error: true });
  else if (task.state === "done" && location.pathname === `/${task.kind}`) return; // the page itself shows what came out
  else notify(task.state === "stopped" ? `${name} was stopped` : task.message || `${name} is done`);
}
