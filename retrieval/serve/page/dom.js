/**
 * Elements made without markup, and words made of numbers.
 *
 * File names, tags and camera names are foreign text. They only ever become text nodes or attribute values here, after
 * `clean` has taken out what could hide or reverse a part of them.
 */

const SVG = "http://www.w3.org/2000/svg";
const PROPERTIES = new Set(["value", "checked", "disabled", "hidden", "open", "textContent", "indeterminate", "max"]);
// eslint-disable-next-line no-control-regex
const UNSHOWABLE = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u202a-\u202e\u2066-\u2069\ufffe\uffff]|[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]/g;

/**
 * An HTML element.
 * @param {string} tag
 * @param {object} props  `on` maps event names to listeners; `dataset` maps names to values; false, null and undefined
 *   leave an attribute out, true makes it empty
 * @param {...(Node|string|null|false|Array)} children  nulls and false are left out
 */
export function el(tag, props = {}, ...children) {
  return fill(document.createElement(tag), props, children);
}

/** The same for SVG. */
export function svg(tag, props = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), props, children);
}

function fill(element, { on = {}, dataset = {}, ...attributes }, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (PROPERTIES.has(name) && name in element) element[name] = value;
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value != null) element.setAttribute(name, value);
  }
  for (const [name, value] of Object.entries(dataset)) if (value != null) element.dataset[name] = value;
  for (const [name, listener] of Object.entries(on)) element.addEventListener(name, listener);
  element.append(...children.flat(Infinity).filter((child) => child != null && child !== false));
  return element;
}

/** Foreign text as it may be shown: control characters, marks that reverse text and broken surrogates become U+FFFD. */
export function clean(text) {
  return String(text).replace(UNSHOWABLE, "\ufffd");
}

/** A piece of foreign text, kept from turning the direction of what stands beside it. */
export function foreign(text) {
  return el("bdi", {}, clean(text));
}

/** A file's name, which may break before its points and after dashes and underscores. */
export function fileName(path) {
  const parts = clean(baseName(path)).split(/(?=\.)|(?<=[_-])/);
  return el("bdi", {}, parts.flatMap((part, n) => (n ? [el("wbr"), part] : [part])));
}

export function baseName(path) {
  return path.replace(/[/\\]+$/, "").split(/[/\\]/).pop() || path;
}

export function folderOf(path) {
  return path.slice(0, Math.max(0, path.length - baseName(path).length - 1)) || "/";
}

let roots = [];

/** The indexed folders, so that a folder can be named from there on. */
export function setRoots(folders) {
  roots = [...folders].sort((a, b) => b.length - a.length);
}

/** The folder of a file as a line, from its indexed folder on; the whole path shows when pointed at. */
export function folderLine(path) {
  return el("p", { class: "folder", title: clean(folderOf(path)) }, foreign(shortFolder(path)));
}

/** The folder of a file from its indexed folder on. */
export function shortFolder(path) {
  const folder = folderOf(path);
  const root = roots.find((one) => folder === one || folder.startsWith(one.replace(/[/\\]*$/, "/")));
  return root === undefined ? folder : `${baseName(root)}${folder.slice(root.replace(/[/\\]+$/, "").length)}`;
}

/** Whole percents, and never certain: between `1 %` and `99 %`. */
export function percent(probability) {
  return `${Math.min(Math.max(Math.round(100 * probability), 1), 99)}\u202f%`;
}

/** `1 image`, `12,000 images` */
export function count(number, one, many = `${one}s`) {
  return `${number.toLocaleString("en")} ${number === 1 ? one : many}`;
}

export function megabytes(bytes) {
  if (bytes >= 1e9) return `${(bytes / 1e9).toFixed(1)} GB`;
  return bytes >= 1e5 ? `${(bytes / 1e6).toFixed(1)} MB` : `${(bytes / 1e3).toFixed(1)} kB`;
}

/** `2023-05-01` of a time in ISO 8601, UTC. */
export function day(iso) {
  return iso ? iso.slice(0, 10) : "";
}

/** The day an image was taken; where only its file's time is known, that is said. */
export function takenOn({ taken_at, date_source }) {
  return date_source === "file" ? `file of ${day(taken_at)}` : day(taken_at);
}

/** Short facts in a row, each kept on one line. */
export function factRow(facts) {
  return facts.filter(Boolean).flatMap((fact, n) => [n > 0 && " · ", el("span", { class: "fact" }, foreign(fact))]);
}

/** `4032 × 3024`, kept on one line */
export function pixels(image) {
  return `${image.width}\u00a0×\u00a0${image.height}`;
}

/** A sign of `icons.js` beside or instead of a word. */
export function button(label, props = {}, ...children) {
  return el("button", { type: "button", ...props }, ...(children.length ? children : [label]));
}

/** Shows a line that goes away by itself; `error` stays until it is closed. */
export function notify(text, { error = false, action = null } = {}) {
  const notice = el(
    "div",
    { class: error ? "notice error" : "notice", role: error ? "alert" : null },
    el("p", {}, clean(text)),
    action && button(action.label, { on: { click: () => (notice.remove(), action.run()) } }),
    button("Close", { class: "quiet", "aria-label": "Close this message", on: { click: () => notice.remove() } }, "×"),
  );
  document.getElementById("notices").append(notice);
  if (!error) setTimeout(() => notice.remove(), action ? 15000 : 6000);
}

/** Calls `run` once, `wait_ms` after the last call. */
export function debounced(run, wait_ms) {
  let timer = 0;
  return (...values) => {
    clearTimeout(timer);
    timer = setTimeout(() => run(...values), wait_ms);
  };
}

/** Whether a key is meant for what is being typed in rather than for the page. */
export function isTyping(event) {
  return event.target.closest?.("input:not([type=range]):not([type=checkbox]):not([type=radio]), select, textarea") != null;
}
