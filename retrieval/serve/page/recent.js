/** The last queries, in this browser only. */

import { forgetUploads } from "./uploads.js";

const KEY = "seenit.recent";
const KEPT = 12;

/** @typedef {{params: string, title: string, detail: string, picture: string, when: number}} Recent */

/** @returns {Recent[]} newest first */
export function recentQueries() {
  try {
    const rows = JSON.parse(localStorage.getItem(KEY) ?? "[]");
    return Array.isArray(rows) ? rows.filter((row) => typeof row?.params === "string").slice(0, KEPT) : [];
  } catch {
    return [];
  }
}

/** @param {Recent} query */
export function rememberQuery(query) {
  const others = recentQueries().filter((row) => row.params !== query.params);
  try {
    localStorage.setItem(KEY, JSON.stringify([query, ...others].slice(0, KEPT)));
  } catch {
    // no room: the list is a convenience
  }
}

/** The list and the uploads that its queries need. */
export async function forgetQueries() {
  localStorage.removeItem(KEY);
  await forgetUploads();
}
