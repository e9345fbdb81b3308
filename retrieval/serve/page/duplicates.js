/** Review of duplicates: groups with the file that is kept, choices, and moving away what was chosen, with undo. */

import * as api from "./api.js";
import { Choices, suggested } from "./choices.js";
import { compareGroup } from "./compare.js";
import { baseName, button, clean, count, el, factRow, fileName, folderLine, foreign, isTyping, megabytes, notify, pixels, takenOn } from "./dom.js";
import { openDialog } from "./image_info.js";
import { wholeImage } from "./results.js";
import { events, newestTask, updateIndex } from "./tasks.js";

const GROUPS = 50; // of a page
const ALL_AT_ONCE = 200; // while every group is read
const TILE_PX = 640;
const LEVELS = { exact: "the same bytes", near: "copies of one photo", scene: "photos of one motif" };
const KEEPS = { resolution: "most pixels", bytes: "largest file", format: "lossless format", oldest: "oldest", newest: "newest" };

/** @param {object} page  readOnly, info */
export function duplicatesView(page) {
  return (outlet, params, signal) => {
    const view = new DuplicatesView(page, outlet, params, signal);
    view.load();
    events.addEventListener("task", ({ detail }) => detail.kind === "duplicates" && detail.state !== "running" && view.load(), { signal });
    document.addEventListener("keydown", (event) => view.key(event), { signal });
  };
}

class DuplicatesView {
  constructor(page, outlet, params, signal) {
    Object.assign(this, { page, outlet, signal });
    this.number = Math.max(1, Number(params.get("page")) || 1);
    document.title = "Duplicates · seenit";
  }

  async load() {
    try {
      const answer = await api.duplicates((this.number - 1) * GROUPS, GROUPS, this.signal);
      if (this.signal.aborted) return;
      this.answer = answer;
      this.choices = new Choices(answer.run?.id ?? "");
      this.draw();
    } catch (error) {
      if (error.name === "AbortError" || this.signal.aborted) return;
      this.outlet.replaceChildren(el("div", { class: "failure", role: "alert" }, el("h1", {}, "No duplicates to show"), el("p", {}, clean(error.message))));
    }
  }

  draw() {
    const { run, groups, total, applied } = this.answer;
    this.totals = el("p", { class: "totals", "aria-live": "polite" });
    this.list = el("ol", { class: "groups" }, groups.map((group) => this.drawGroup(group)));
    this.outlet.replaceChildren(
      el("div", { class: "duplicates-head" },
        el("h1", {}, "Duplicates"),
        run ? el("p", { class: "facts" }, runInWords(run)) : el("p", { class: "facts" }, "Finds copies of the same photo: resized, cropped, mirrored, turned, retouched. Nothing is ever deleted."),
        this.finder(run),
        run?.notes.map((note) => el("p", { class: "note" }, foreign(note)))),
      this.undoList(applied),
      ...(groups.length ? [this.help(), this.list, this.pager(total), this.bar()] : run ? [el("p", { class: "missing" }, "No duplicates were found.")] : []),
    );
    this.tell();
  }

  finder(run) {
    const select = (label, values, value) => {
      const field = el("select", {}, Object.entries(values).map(([name, words]) => el("option", { value: name }, words)));
      field.value = value;
      return { field, label: el("label", { class: "field" }, el("span", {}, label), field) };
    };
    const level = select("Look for", LEVELS, run?.level ?? "near");
    const keep = select("Keep", KEEPS, run?.keep ?? "resolution");
    const start = async (event) => {
      event.preventDefault();
      try {
        await api.findDuplicates(level.field.value, keep.field.value);
      } catch (error) {
        notify(error.message, { error: true });
      }
    };
    const busy = newestTask()?.kind === "duplicates" && newestTask().state === "running";
    return el("form", { class: "finder", on: { submit: start } }, level.label, keep.label,
      el("button", { type: "submit", class: run ? "" : "primary", disabled: busy }, run ? "Look again" : "Find duplicates"));
  }

  help() {
    const keys = [["↑ ↓", "group"], ["Enter", "move what is suggested"], ["K", "keep all"], ["1–9", "a copy"], ["0", "the kept one"], ["C", "compare"], ["U", "undecided"]];
    return el("p", { class: "keys" }, keys.map(([key, words]) => el("span", {}, el("kbd", {}, key), ` ${words}`)));
  }

  // ---- one group ----

  drawGroup(group) {
    const head = el("p", { class: "group-head" });
    const keeper = this.tile(group, group.keeper, "0");
    const members = group.members.map((member, n) => this.tile(group, member, n < 9 ? String(n + 1) : ""));
    const element = el("li", { class: "dup-group", tabindex: 0, "aria-label": `Group ${group.group}, ${count(group.members.length, "copy", "copies")} of ${clean(baseName(group.keeper.path))}`, dataset: { group: group.group } },
      head, el("div", { class: "tiles" }, keeper.element, members.map((one) => one.element)));
    element.refresh = () => {
      const moves = this.choices.moves(group);
      const decided = this.choices.decided(group);
      const bytes = [group.keeper, ...group.members].filter((file) => moves.has(file.file)).reduce((sum, file) => sum + file.bytes, 0);
      element.classList.toggle("decided", decided);
      for (const one of [keeper, ...members]) one.refresh(moves, decided);
      head.replaceChildren(
        el("span", { class: "state" }, decided ? (moves.size ? `moves ${count(moves.size, "file")}, ${megabytes(bytes)}` : "keeps all") : `undecided; suggested: move ${count(moves.size, "file")}, ${megabytes(bytes)}`),
        el("span", { class: "gap" }),
        ...this.groupButtons(group, element, decided));
    };
    element.refresh();
    return element;
  }

  groupButtons(group, element, decided) {
    const act = (label, run, style = "") => button(label, { class: style, on: { click: () => (run(), this.changed(element)) } });
    const movable = suggested(group).length > 0;
    return [
      button("Compare", { class: "quiet", on: { click: () => this.compare(group, 0, element) } }),
      this.page.readOnly ? null : movable && act("Move suggested", () => this.choices.accept(group)),
      this.page.readOnly ? null : act("Keep all", () => this.choices.keepAll(group)),
      decided && act("Undo choice", () => this.choices.undecide(group), "quiet"),
    ].filter(Boolean);
  }

  tile(group, file, key) {
    const isKeeper = file === group.keeper;
    const state = el("span", { class: "badge" });
    const free = !this.page.readOnly && !file.moved && (isKeeper || file.spare);
    const switcher = button("", { class: "switch", hidden: !free, on: { click: (event) => this.toggle(group, file, event.target.closest(".dup-group")) } });
    const element = el("div", { class: "tile" },
      el("button", { type: "button", class: "image", "aria-label": `Compare ${clean(baseName(file.path))}`, on: { click: (event) => this.compare(group, Math.max(0, group.members.indexOf(file)), event.target.closest(".dup-group")) } },
        wholeImage(api.thumbnailUrl(file.id, TILE_PX), file, null)),
      el("div", { class: "text" },
        el("p", { class: "line" }, key && el("kbd", {}, key), state, !isKeeper && el("span", { class: "small" }, `${file.level} ${file.similarity.toFixed(2)}`)),
        el("h3", {}, fileName(file.path)),
        folderLine(file.path),
        el("p", { class: "small" }, factRow([pixels(file), file.format, megabytes(file.bytes), takenOn(file)])),
        isKeeper && group.why_kept && el("p", { class: "small" }, foreign(`kept: ${group.why_kept}`)),
        !isKeeper && (file.how || file.why_not) && el("p", { class: "small" }, foreign([file.how, file.why_not && `stays: ${file.why_not}`].filter(Boolean).join("; "))),
        switcher));
    const refresh = (moves, decided) => {
      const moving = moves.has(file.file);
      element.classList.toggle("moving", moving && decided);
      state.className = file.moved ? "badge" : moving ? "badge perhaps" : "badge same";
      state.textContent = file.moved ? "moved away" : moving ? (decided ? "moves" : "could move") : isKeeper ? "keep" : "stays";
      switcher.textContent = moving ? "Keep" : "Move";
      switcher.setAttribute("aria-label", `${moving ? "Keep" : "Move"} ${clean(baseName(file.path))}`);
    };
    return { element, refresh };
  }

  toggle(group, file, element) {
    const reason = this.choices.toggle(group, file);
    if (reason) notify(reason.charAt(0).toUpperCase() + reason.slice(1));
    this.changed(element);
  }

  changed(element) {
    const focused = document.activeElement;
    element.refresh();
    if (!focused?.isConnected) element.focus();
    this.tell();
  }

  compare(group, member, element) {
    compareGroup(group, member, {
      moves: (file) => this.choices.moves(group).has(file.file),
      toggle: (file) => !this.page.readOnly && this.toggle(group, file, element),
    }, this.signal, () => element.focus());
  }

  key(event) {
    if (isTyping(event) || event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]") || !this.list) return;
    const all = [...this.list.children];
    const here = event.target.closest?.(".dup-group");
    if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      const next = here ? all[all.indexOf(here) + (event.key === "ArrowDown" ? 1 : -1)] : all[0];
      if (!next) return;
      next.focus();
      next.scrollIntoView({ block: "nearest" });
    } else if (!here || (event.key === "Enter" && event.target !== here)) return;
    else if (!this.keyOn(here, event.key.toLowerCase())) return;
    event.preventDefault();
  }

  /** A key on a group; whether it means something. */
  keyOn(element, key) {
    const group = this.answer.groups.find((one) => String(one.group) === element.dataset.group);
    const file = /^\d$/.test(key) && (key === "0" ? group.keeper : group.members[Number(key) - 1]);
    if (key === "c") this.compare(group, 0, element);
    else if (this.page.readOnly) return false;
    else if (key === "enter") this.choices.accept(group);
    else if (key === "k") this.choices.keepAll(group);
    else if (key === "u") this.choices.undecide(group);
    else if (file) return this.toggle(group, file, element), true;
    else return false;
    if (key !== "c") this.changed(element);
    if (key === "enter" || key === "k") element.nextElementSibling?.focus();
    return true;
  }

  // ---- all groups ----

  pager(total) {
    const pages = Math.ceil(total / GROUPS);
    if (pages < 2) return "";
    const link = (number, words) => (number < 1 || number > pages
      ? el("span", { class: "small" }, words)
      : el("a", { class: "button", href: `/duplicates?page=${number}` }, words));
    return el("nav", { class: "pager", "aria-label": "Pages of groups" }, link(this.number - 1, "Previous"), el("span", {}, `${this.number} of ${pages}`), link(this.number + 1, "Next"));
  }

  bar() {
    if (this.page.readOnly) return el("div", { class: "apply-bar" }, el("p", {}, "This server is read-only: nothing can be moved."));
    this.applyButton = button("Review and move…", { class: "primary", on: { click: () => this.plan() } });
    return el("div", { class: "apply-bar" }, this.totals, el("span", { class: "gap" }),
      button("Accept all", { "aria-label": "Accept all suggestions", on: { click: () => this.acceptAll() } }),
      button("Forget", { "aria-label": "Forget the choices", class: "quiet", on: { click: () => (this.choices.clear(), this.refreshAll()) } }),
      this.applyButton);
  }

  refreshAll() {
    for (const element of this.list.children) element.refresh();
    this.tell();
  }

  tell() {
    const { groups, files, bytes } = this.choices.totals();
    this.totals.textContent = groups ? `${count(groups, "group")} of ${this.answer.total.toLocaleString("en")} decided: ${count(files, "file")}, ${megabytes(bytes)} to move` : `Nothing is decided yet; nothing moves before it is.`;
    if (this.applyButton) this.applyButton.disabled = files === 0;
  }

  /** Every undecided group as suggested, those of other pages as well. */
  async acceptAll() {
    try {
      for (let offset = 0; offset < this.answer.total; offset += ALL_AT_ONCE) {
        const { groups, run } = await api.duplicates(offset, ALL_AT_ONCE, this.signal);
        if (run?.id !== this.choices.run) throw new api.ApiError("the duplicates were looked for again meanwhile; reload the page", 409);
        this.choices.acceptAll(groups);
      }
    } catch (error) {
      if (error.name !== "AbortError") notify(error.message, { error: true });
    }
    this.refreshAll();
  }

  /** What would be moved, asked of the server, and the button that does it. */
  async plan() {
    const choices = this.choices.forApi();
    try {
      const would = await api.applyChoices(this.choices.run, choices, true);
      const dialog = openDialog("Move away", "plan", [
        el("p", {}, `${count(would.files, "file")}, ${megabytes(would.bytes)}, move to`), el("p", { class: "path" }, foreign(would.to)),
        el("p", { class: "small" }, "Nothing is deleted. A list of the moves is written beside them, and Undo puts every file back."),
        leftList(would.left),
        el("p", { class: "actions" },
          button(`Move ${count(would.files, "file")}`, { class: "primary", disabled: would.files === 0, on: { click: () => (dialog.close(), this.apply(choices)) } }),
          button("Cancel", { on: { click: () => dialog.close() } })),
      ], this.signal);
    } catch (error) {
      notify(error.message, { error: true });
    }
  }

  async apply(choices) {
    try {
      const done = await api.applyChoices(this.choices.run, choices, false);
      this.choices.clear();
      const undo = done.manifest && { label: "Undo", run: () => this.undo(done.manifest) };
      notify(`Moved ${count(done.files, "file")}, ${megabytes(done.bytes)}, to ${done.to}`, { action: undo });
      tellLeft(done);
    } catch (error) {
      notify(error.message, { error: true });
    }
    await this.load();
  }

  undoList(applied) {
    if (!applied.length || this.page.readOnly) return "";
    return el("section", { class: "applied", "aria-label": "Moved away" },
      el("h2", {}, "Moved away"),
      el("ul", {}, applied.map((one) => el("li", {}, el("span", {}, `${count(one.files, "file")}, ${megabytes(one.bytes)} `, el("small", {}, foreign(one.manifest))),
        button("Put back", { "aria-label": `Put back ${clean(one.manifest)}`, on: { click: () => this.undo(one.manifest) } })))));
  }

  async undo(manifest) {
    try {
      const done = await api.undoMove(manifest);
      notify(`Put back ${count(done.files, "file")}, ${megabytes(done.bytes)}`);
      tellLeft(done);
      await updateIndex();
    } catch (error) {
      notify(error.message, { error: true });
    }
    if (!this.signal.aborted) await this.load();
  }
}

function runInWords(run) {
  const found = run.groups ? `${count(run.groups, "group")}; ${count(run.spare_files, "file")}, ${megabytes(run.spare_bytes)}, could be given up` : "No duplicates";
  return `${found}. Looked for ${LEVELS[run.level]} among ${count(run.images, "image")}, in ${run.seconds.toFixed(1)} s.`;
}

function leftList(left) {
  return left.length > 0 && el("details", {}, el("summary", {}, `${count(left.length, "file")} left alone`), el("ul", { class: "skipped" }, left.map((line) => el("li", {}, foreign(line)))));
}

function tellLeft(done) {
  if (done.left.length) notify(`Left alone: ${done.left.slice(0, 3).join("; ")}${done.left.length > 3 ? `; and ${done.left.length - 3} more` : ""}`, { error: true });
  for (const note of done.notes) notify(note);
}
