/** What is known of one image, its tags to be edited, and what can be done with it. */

import * as api from "./api.js";
import { chips } from "./chips.js";
import { baseName, button, clean, count, el, folderOf, foreign, megabytes, notify, pixels } from "./dom.js";
import { icon } from "./icons.js";
import { wholeImage } from "./results.js";

const SHOWN_PX = 1280;
const SOURCES = { exif: "camera", xmp: "XMP", name: "file name", file: "file's time" };

/**
 * Open the dialog of an image; it closes with the view.
 * @param {string} id
 * @param {object} context  readOnly; search(id)
 */
export async function inspectImage(id, { readOnly, search, onClose = () => {} }, signal) {
  let image;
  let known = [];
  try {
    [image, known] = await Promise.all([api.imageInfo(id, signal), api.tags(signal).then((tags) => tags.map((one) => one.tag))]);
  } catch (error) {
    if (error.name !== "AbortError") notify(error.message, { error: true });
    onClose();
    return;
  }
  const name = baseName(image.path);
  const dialog = openDialog(clean(name), "about", [
    el("div", { class: "image" }, wholeImage(api.thumbnailUrl(id, SHOWN_PX), image, null)),
    el("div", { class: "text" },
      el("p", { class: "actions" },
        button("Search with this image", { class: "primary", on: { click: () => (dialog.close(), search(id)) } }),
        el("a", { class: "button", href: api.originalUrl(id), target: "_blank", rel: "noopener" }, "Open the file"),
      ),
      factList(image),
      readOnly ? tagLine(image.tags) : tagEditor(image, known),
    ),
  ], signal, onClose);
}

/** A dialog over the page, with a heading and a button that closes it; it closes with the view. */
export function openDialog(title, style, children, signal, onClose = () => {}) {
  const heading = el("h2", {}, el("bdi", {}, title));
  const dialog = el(
    "dialog",
    { class: `dialog ${style}`, "aria-label": title },
    el("header", { class: "dialog-head" }, heading, button("", { class: "icon-button", "aria-label": "Close", on: { click: () => dialog.close() } }, icon("close"))),
    children,
  );
  dialog.addEventListener("close", () => (dialog.remove(), onClose()));
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
  signal.addEventListener("abort", () => dialog.remove(), { once: true });
  document.body.append(dialog);
  dialog.showModal();
  return dialog;
}

function factList(image) {
  const taken = image.taken_at && `${image.taken_at.slice(0, 16).replace("T", " ")} UTC, from the ${SOURCES[image.date_source] ?? image.date_source}`;
  const rows = [
    ["Folder", folderOf(image.path)],
    ["Size", `${pixels(image)}, ${image.format}, ${megabytes(image.bytes)}`],
    ["Taken", taken],
    ["Camera", image.camera],
    ["Place", image.gps && image.gps.map((value) => value.toFixed(5)).join(", ")],
    ["Pages or frames", image.frames > 1 && String(image.frames)],
    ["Kind", image.raw && "a camera's raw file"],
    ["Note", image.note],
  ].filter(([, value]) => value);
  return el(
    "dl",
    { class: "fact-list" },
    rows.map(([name, value]) => [el("dt", {}, name), el("dd", {}, foreign(value))]),
    image.copies.length > 0 && [
      el("dt", {}, count(image.copies.length, "more copy", "more copies")),
      image.copies.map((path) => el("dd", {}, foreign(path))),
    ],
  );
}

function tagLine(tags) {
  return tags.length > 0 && el("p", { class: "small" }, foreign(tags.map((tag) => `#${tag}`).join(" ")));
}

function tagEditor(image, known) {
  return chips({
    label: "Tags", values: image.tags, known, hint: "add a tag",
    onChange: async (tags) => {
      try {
        await api.setTags(image.id, tags);
      } catch (error) {
        notify(error.message, { error: true });
      }
    },
  });
}
