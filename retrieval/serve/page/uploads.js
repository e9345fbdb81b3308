/**
 * Images that were dropped, pasted, picked or taken, by content id.
 *
 * They stay in this browser (IndexedDB), so that a query with an image that is not indexed survives a reload and can be
 * asked again from the list of recent queries. Where the browser keeps nothing, they last as long as the page.
 */

const KEPT = 24; // uploads, the newest
const inMemory = new Map();

/** Keep a file. @returns {Promise<string>} its content id */
export async function keepUpload(file) {
  const id = await contentId(file);
  inMemory.set(id, file);
  await stored(async (files) => {
    await done(files.put({ id, file, name: file.name || "image", when: Date.now() }));
    const all = await done(files.index("when").getAllKeys());
    for (const old of all.slice(0, Math.max(0, all.length - KEPT))) await done(files.delete(old));
  });
  return id;
}

/** @returns {Promise<File|null>} the upload of that id; null where this browser does not have it */
export async function uploadOf(id) {
  if (!inMemory.has(id)) {
    const row = await stored((files) => done(files.get(id)));
    inMemory.set(id, row ? new File([row.file], row.name, { type: row.file.type }) : null);
  }
  return inMemory.get(id);
}

/** The server names an upload by its bytes; where the browser could not, the upload takes that name. */
export async function renameUpload(from, to) {
  const file = await uploadOf(from);
  if (!file || from === to) return;
  inMemory.set(to, file);
  await stored(async (files) => {
    await done(files.put({ id: to, file, name: file.name, when: Date.now() }));
    await done(files.delete(from));
  });
}

export async function forgetUploads() {
  inMemory.clear();
  await stored((files) => done(files.clear()));
}

/**
 * The id that the index gives the same bytes: the first 128 bits of their SHA-256 as a UUID.
 *
 * Browsers offer the hash only on https and on the own machine. Elsewhere the id is random; it then names the upload in
 * this browser and nothing else.
 */
async function contentId(file) {
  const bytes = crypto.subtle
    ? new Uint8Array(await crypto.subtle.digest("SHA-256", await file.arrayBuffer())).slice(0, 16)
    : crypto.getRandomValues(new Uint8Array(16));
  const hex = Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
  return hex.replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, "$1-$2-$3-$4-$5");
}

/** Run with the table of uploads; null where the browser has none. */
async function stored(run) {
  try {
    const request = indexedDB.open("seenit", 1);
    request.onupgradeneeded = () => request.result.createObjectStore("uploads", { keyPath: "id" }).createIndex("when", "when");
    const database = await done(request);
    try {
      return await run(database.transaction("uploads", "readwrite").objectStore("uploads"));
    } finally {
      database.close();
    }
  } catch {
    return null; // private windows and full disks: the upload stays in memory
  }
}

function done(request) {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}
