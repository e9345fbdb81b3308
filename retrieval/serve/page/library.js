/** The library: all images by folder and date, what was skipped, and the run that brings the index in line. */

import * as api from "./api.js";
import { baseName, button, clean, count, el, foreign, notify, takenOn } from "./dom.js";
import { inspectImage, openDialog } from "./image_info.js";
import { fromParams, toParams, withImage } from "./query.js";
import { go, setAddress } from "./router.js";
import { events, updateIndex } from "./tasks.js";
import { VirtualGrid } from "./virtual.js";

const CELL_PX = 190;
const CELL_HEIGHT_PX = 204;
const THUMBNAIL_PX = 320;
const SKIPPED_AT_ONCE = 200;

/** @param {object} page  readOnly, info */
export function libraryView(page) {
  return (outlet, params, signal) => {
    const view = new LibraryView(page, outlet, params, signal);
    view.draw();
    events.addEventListener("index", () => view.draw(), { signal });
  };
}

class LibraryView {
  constructor(page, outlet, params, signal) {
    Object.assign(this, { page, outlet, signal });
    this.params = new URLSearchParams(params);
    this.opened = null; // id of the image whose dialog is open
    document.title = "Library · seenit";
  }

  get filter() {
    const under = this.params.get("under");
    return under ? { under } : {};
  }

  get order() {
    return this.params.get("order") === "path" ? "path" : "date";
  }

  /** All of it anew: at first, and when the index has changed. */
  async draw() {
    try {
      const [folders, months, first] = await Promise.all([
        api.folders(this.signal), api.dates(this.filter, this.signal),
        api.images({ ...this.filter, order: this.order, limit: 1 }, this.signal),
      ]);
      if (this.signal.aborted) return;
      this.drawAll(folders, months, first.total);
    } catch (error) {
      if (error.name === "AbortError" || this.signal.aborted) return;
      this.outlet.replaceChildren(el("div", { class: "failure", role: "alert" }, el("h1", {}, "No library"), el("p", {}, clean(error.message))));
    }
  }

  drawAll(folders, months, total) {
    this.grid?.end.abort();
    const end = new AbortController();
    this.signal.addEventListener("abort", () => end.abort(), { once: true });
    this.grid = new VirtualGrid({
      total, width: CELL_PX, height: CELL_HEIGHT_PX, label: "Images", draw: drawCell, signal: end.signal,
      load: (offset, limit) => this.load(offset, limit), open: (image) => this.open(image.id),
    });
    this.grid.end = end;
    this.outlet.replaceChildren(
      el("div", { class: "library-head" }, el("h1", {}, "Library"), el("p", { class: "facts" }, count(total, "image")), this.controls()),
      el("div", { class: "library" }, this.places(folders, months), total
        ? this.grid.element
        : el("p", { class: "missing" }, "No images here.")),
    );
    this.grid.update();
    if (this.params.has("image")) this.open(this.params.get("image"));
  }

  async load(offset, limit) {
    try {
      return (await api.images({ ...this.filter, order: this.order, offset, limit }, this.signal)).images;
    } catch (error) {
      if (error.name !== "AbortError") notify(error.message, { error: true });
      throw error;
    }
  }

  controls() {
    const { skipped } = this.page.info;
    return el("p", { class: "controls" },
      skipped > 0 && button(`${count(skipped, "file")} skipped`, { class: "quiet", on: { click: () => showSkipped(this.signal) } }),
      !this.page.readOnly && button("Update the index", { on: { click: updateIndex } }),
    );
  }

  /** Where to go: folder, order, month. Lists that may be long are select fields, which the keyboard searches. */
  places(folders, months) {
    const depth = depths(folders);
    const set = (name, value) => {
      value ? this.params.set(name, value) : this.params.delete(name);
      this.params.delete("image");
      go("/library", this.params);
    };
    const folder = el("select", { on: { change: (event) => set("under", event.target.value) } },
      el("option", { value: "" }, "All folders"),
      folders.map((one) => el("option", { value: one.path }, `${"\u2003".repeat(depth.get(one.path))}${clean(one.name)} (${one.images})`)));
    folder.value = this.params.get("under") ?? "";
    const order = el("select", { on: { change: (event) => set("order", event.target.value) } },
      el("option", { value: "date" }, "newest first"), el("option", { value: "path" }, "by path"));
    order.value = this.order;
    const dated = this.order === "date" && months.length > 0;
    const month = dated && el("select", { on: { change: (event) => this.grid.reveal(Number(event.target.value)) } },
      months.map((one) => el("option", { value: String(one.offset) }, `${one.month ?? "no date"} (${one.images})`)));
    const field = (label, control) => control && el("label", { class: "field" }, el("span", {}, label), control);
    return el("div", { class: "places" }, field("Folder", folder), field("Order", order), field("Month", month));
  }

  open(id) {
    if (this.opened === id) return; // the library was drawn anew beneath its dialog
    this.opened = id;
    this.params.set("image", id);
    setAddress("/library", this.params);
    inspectImage(id, {
      readOnly: this.page.readOnly,
      search: (image) => go("/", toParams(withImage(fromParams(new URLSearchParams()), image))),
      onClose: () => {
        this.opened = null;
        if (this.signal.aborted) return;
        this.params.delete("image");
        setAddress("/library", this.params);
        this.grid.cells.get(this.grid.active)?.focus({ preventScroll: true });
      },
    }, this.signal);
  }
}

function drawCell(image) {
  const name = baseName(image.path);
  const picture = el("img", { src: api.thumbnailUrl(image.id, THUMBNAIL_PX), alt: "", loading: "lazy", decoding: "async" });
  picture.addEventListener("error", () => picture.replaceWith(el("span", { class: "missing" }, "cannot be shown")), { once: true });
  return [
    el("div", { class: "image" }, picture),
    el("p", { class: "cell-name" }, foreign(name)),
    el("p", { class: "small" }, foreign([takenOn(image), ...image.tags.map((tag) => `#${tag}`)].filter(Boolean).join(" "))),
  ];
}

/** How deep each folder lies below the indexed ones. */
function depths(folders) {
  const depth = new Map();
  for (const folder of folders) depth.set(folder.path, (depth.get(folder.parent) ?? -1) + 1);
  return depth;
}

/** Files that were not indexed, each with its reason, some hundred at a time. */
async function showSkipped(signal) {
  const list = el("ul", { class: "skipped" });
  const more = button("Show more", { hidden: true, on: { click: () => next() } });
  openDialog("Skipped files", "skipped-files", [list, el("p", {}, more)], signal);

  async function next() {
    try {
      const answer = await api.skipped(list.children.length, SKIPPED_AT_ONCE, signal);
      list.append(...answer.files.map((file) => el("li", {}, el("p", {}, foreign(file.path)), el("p", { class: "small" }, foreign(file.reason)))));
      more.hidden = !answer.files.length || list.children.length >= answer.total;
    } catch (error) {
      if (error.name !== "AbortError") notify(error.message, { error: true });
    }
  }

  await next();
}
