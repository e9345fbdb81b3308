/** The search page: what is asked on the left, the results beside it. */

import * as api from "./api.js";
import { baseName, button, clean, count, debounced, el, foreign, isTyping, notify } from "./dom.js";
import { filterForm } from "./filters.js";
import { icon } from "./icons.js";
import { inspectImage } from "./image_info.js";
import { NO_FILTERS, changed, filtersForApi, filtersInWords, fromParams, judged, toParams, withImage } from "./query.js";
import { forgetQueries, recentQueries, rememberQuery } from "./recent.js";
import { regionPicker } from "./region.js";
import { resultList } from "./results.js";
import { go, setAddress } from "./router.js";
import { events } from "./tasks.js";
import { keepUpload, renameUpload, uploadOf } from "./uploads.js";

const QUERY_PX = 1280;
const SMALL_PX = 160;
const PATIENCE_MS = 350; // between a like, a moved box, and the search that follows
const KEPT_ANSWERS = 12;
const ACCEPTED = "image/*,.heic,.heif,.dng,.cr2,.cr3,.nef,.arw,.raf,.orf,.rw2";

const answers = new Map(); // by the address's parameters, so that going back shows them at once
const indexed = new Map(); // content id -> name, of images that the server said it has
events.addEventListener("index", () => answers.clear());

/** @param {object} page  readOnly */
export function searchView(page) {
  return (outlet, params, signal) => new SearchView(page, outlet, fromParams(params), signal);
}

class SearchView {
  constructor(page, outlet, query, signal) {
    this.page = page;
    this.query = query;
    this.signal = signal;
    this.running = new AbortController();
    this.ask = el("aside", { class: "ask", "aria-label": "Query" });
    this.answer = el("section", { class: "answer", "aria-label": "Results", "aria-live": "off" });
    this.told = el("p", { class: "unseen", role: "status" });
    this.searchSoon = debounced(() => this.search(), PATIENCE_MS);
    outlet.append(...(query.images.length ? [this.ask, this.answer, this.told] : [this.start()]));
    signal.addEventListener("abort", () => this.running.abort());
    document.addEventListener("paste", (event) => this.paste(event), { signal });
    document.addEventListener("dragover", (event) => event.preventDefault(), { signal });
    document.addEventListener("drop", (event) => this.drop(event, false), { signal });
    if (!query.images.length) return;
    this.drawAsk();
    this.search();
  }

  // ---- changes of the query ----

  /** The query becomes `update(query)`: the address follows at once, the search when no more changes come. */
  change(update) {
    if (this.signal.aborted) return;
    this.query = update(this.query);
    setAddress("/", toParams(this.query), false);
    this.drawJudged();
    this.searchSoon();
  }

  searchWith(id) {
    go("/", toParams(withImage(this.query, id)));
  }

  addView(id) {
    if (this.query.images.includes(id)) return;
    go("/", toParams(changed(this.query, { images: [...this.query.images, id] })));
  }

  /** Files as a new query, all of them views of one thing, or as more views of the present one. */
  async take(files, asView) {
    const images = [...files].filter((file) => !file.type || file.type.startsWith("image/"));
    if (!images.length) {
      notify("This is not an image. Drop a photo, or paste one.", { error: true });
      return;
    }
    const ids = [];
    for (const file of images.slice(0, 8)) ids.push(await keepUpload(file));
    const before = asView ? this.query.images : [];
    const base = asView ? this.query : withImage(this.query, ids[0]);
    go("/", toParams(changed(base, { images: [...new Set([...before, ...ids])] })));
  }

  paste(event) {
    const files = [...(event.clipboardData?.files ?? [])];
    if (!files.length || (isTyping(event) && event.clipboardData.types.includes("text/plain"))) return;
    event.preventDefault();
    this.take(files, false);
  }

  drop(event, asView) {
    event.preventDefault();
    event.stopPropagation();
    const id = event.dataTransfer.getData("text/x-seenit-id");
    if (id) asView ? this.addView(id) : this.searchWith(id);
    else if (event.dataTransfer.files.length) this.take(event.dataTransfer.files, asView);
  }

  // ---- the query ----

  /** The page before anything is asked. */
  start() {
    return el(
      "div",
      { class: "start" },
      el("h1", {}, "Have I seen this before?"),
      el("div", { class: "dropzone" },
        el("p", { class: "big" }, "Drop a photo here, or paste one"),
        this.pickers(false),
        el("p", { class: "small" }, "Several photos at once count as views of the same thing.")),
      this.recent(),
    );
  }

  /** Buttons that take images from this machine or its camera. */
  pickers(asView) {
    const input = (props) => el("input", {
      type: "file", accept: ACCEPTED, hidden: true, ...props, on: { change: (event) => this.take(event.target.files, asView) },
    });
    const files = input({ multiple: true, "aria-label": asView ? "Further views" : "Photos to search with" });
    const camera = input({ capture: "environment", accept: "image/*", "aria-label": "Camera" });
    return el("p", { class: "pickers" },
      files, camera,
      button(asView ? "Add a view" : "Choose a photo", { class: asView ? "" : "primary", on: { click: () => files.click() } },
        icon(asView ? "add" : "search"), asView ? "Add a view" : "Choose a photo"),
      button("Take a photo", { class: "camera", on: { click: () => camera.click() } }, icon("camera"), "Take a photo"),
    );
  }

  recent() {
    const rows = recentQueries();
    if (!rows.length) return null;
    const section = el(
      "section",
      { class: "recent", "aria-label": "Recent queries" },
      el("h2", {}, "Recent"),
      el("ul", {}, rows.map((row) => el("li", {}, el("a", { href: `/?${new URLSearchParams(row.params)}` },
        row.picture?.startsWith("data:image/") ? el("img", { src: row.picture, alt: "" }) : el("span", { class: "no-picture" }),
        el("span", {}, foreign(row.title), row.detail && el("small", {}, foreign(row.detail))),
      )))),
      button("Forget these", { class: "quiet", on: { click: async () => (await forgetQueries(), section.remove()) } }),
    );
    return section;
  }

  async drawAsk() {
    const [first, ...views] = this.query.images;
    const { src, name } = await this.pictureOf(first, QUERY_PX);
    if (this.signal.aborted) return;
    this.picker = regionPicker({
      src, label: `Query ${clean(name)}`, region: this.query.region,
      onChange: (region) => (this.drawRegionLine(region), this.change((query) => changed(query, { region }))),
    });
    this.regionLine = el("p", { class: "small region-line" });
    this.views = el("ul", { class: "views", "aria-label": "Further views" });
    this.judged = el("div", { class: "judged" });
    const more = el("div", { class: "more", on: { drop: (event) => this.drop(event, true) } }, this.views, this.pickers(true));
    this.ask.replaceChildren(
      this.picker.element,
      el("p", { class: "name" }, foreign(name)),
      this.regionLine,
      more,
      this.judged,
      this.makeFilters(),
      el("p", { class: "again" }, el("a", { class: "button", href: "/" }, "New search")),
    );
    this.drawRegionLine(this.query.region);
    this.drawJudged();
    this.views.replaceChildren(...await Promise.all(views.map((id) => this.view(id))));
  }

  makeFilters() {
    const clear = () => {
      this.change((query) => changed(query, { filters: NO_FILTERS }));
      this.filters.replaceWith(this.makeFilters());
      this.filters.open = true;
      this.filters.querySelector("summary").focus();
    };
    this.filters = filterForm(this.query, (update) => this.change(update), clear, this.signal);
    return this.filters;
  }

  drawRegionLine(region) {
    const clear = () => (this.picker.set(null), this.drawRegionLine(null), this.picker.element.focus(), this.change((query) => changed(query, { region: null })));
    this.regionLine.replaceChildren(...(region
      ? ["Searching with the box only. ", button("Whole image", { class: "quiet", on: { click: clear } })]
      : [el("span", { id: "region-help" }, "Draw a box to search for a part", el("span", { class: "unseen" }, "; by keyboard: Enter makes a box, arrows move it, Shift and arrows resize it, Escape removes it"), ".")]));
  }

  async view(id) {
    const { src, name } = await this.pictureOf(id, SMALL_PX);
    const remove = () => go("/", toParams(changed(this.query, { images: this.query.images.filter((one) => one !== id) })));
    return el("li", {}, el("img", { src, alt: clean(name) }), button("", { class: "icon-button", "aria-label": `Remove the view ${clean(name)}`, on: { click: remove } }, icon("close")));
  }

  /** Liked and disliked images, each to be taken back. */
  drawJudged() {
    const row = (list, title) => this.query[list].length > 0 && el("div", {}, el("h3", {}, title), el("ul", { class: "views" }, this.query[list].map((id) => el("li", {},
      el("img", { src: api.thumbnailUrl(id, SMALL_PX), alt: "" }),
      button("", { class: "icon-button", "aria-label": `Take back: ${title}`, on: { click: () => this.change((query) => judged(query, id, list)) } }, icon("close")),
    ))));
    this.judged?.replaceChildren(...[row("like", "More like"), row("not", "Not like")].filter(Boolean));
  }

  /** Where an image of the query can be seen, and its name. */
  async pictureOf(id, size_px) {
    const file = await uploadOf(id);
    if (!file) return { src: api.thumbnailUrl(id, size_px), name: indexed.get(id) ?? "image" };
    const src = URL.createObjectURL(file);
    this.signal.addEventListener("abort", () => URL.revokeObjectURL(src), { once: true });
    return { src, name: file.name };
  }

  // ---- the answer ----

  async search() {
    this.running.abort();
    this.running = new AbortController();
    const { signal } = this.running;
    const query = this.query;
    const key = toParams(query).toString();
    this.answer.setAttribute("aria-busy", "true");
    if (!this.answer.hasChildNodes()) this.answer.append(el("p", { class: "facts", role: "status" }, "Searching…"));
    try {
      const answer = answers.get(key) ?? await askServer(query, signal);
      if (signal.aborted || this.signal.aborted) return;
      remember(key, answer);
      this.drawAnswer(query, answer);
    } catch (error) {
      if (error.name !== "AbortError" && !this.signal.aborted) this.drawFailure(error);
    } finally {
      if (!signal.aborted) this.answer.removeAttribute("aria-busy");
    }
  }

  drawAnswer(query, answer) {
    const focus = focusIn(this.answer);
    const list = resultList(answer, this.actions(), query);
    list.querySelector("h2").after(el("p", { class: "asked" }, askedInWords(query, answer).flatMap((part, n) => [n > 0 && " · ", foreign(part)])));
    this.answer.replaceChildren(list);
    if (answer.results.length >= query.options.top && query.options.top < 1000) list.append(this.moreButton(query));
    restoreFocus(this.answer, focus);
    this.told.textContent = list.querySelector("h2").textContent;
    document.title = `${clean(answer.asked.images[0]?.name ?? "Search")} · seenit`;
    const name = answer.asked.images[0]?.name;
    if (name) this.ask.querySelector(".name")?.replaceChildren(foreign(baseName(name)));
    this.rememberRecent(query, answer);
  }

  moreButton(query) {
    const top = Math.min(1000, query.options.top < 50 ? 50 : query.options.top * 2);
    return el("p", { class: "more-results" }, button(`Show ${top} results`, {
      on: { click: () => this.change((now) => changed(now, { options: { ...now.options, top } })) },
    }));
  }

  drawFailure(error) {
    const gone = error.status === 404 && "An image of this query is neither in the index nor in this browser. Drop it again.";
    this.answer.replaceChildren(el("div", { class: "failure", role: "alert" },
      el("h2", {}, "No answer"), el("p", {}, clean(gone || error.message)),
      button("Try again", { on: { click: () => this.search() } })));
  }

  actions() {
    const whyUrl = (id) => {
      const params = new URLSearchParams({ image: id });
      for (const view of [...this.query.images, ...this.query.like]) params.append("query", view);
      if (this.query.region) params.set("region", this.query.region.join(","));
      return `/why?${params}`;
    };
    return {
      whyUrl,
      why: (id) => go("/why", new URLSearchParams(whyUrl(id).split("?")[1])),
      like: (id) => this.change((query) => judged(query, id, "like")),
      unlike: (id) => this.change((query) => judged(query, id, "not")),
      search: (id) => this.searchWith(id),
      add: (id) => this.addView(id),
      inspect: (result) => inspectImage(result.id, { readOnly: this.page.readOnly, search: (id) => this.searchWith(id) }, this.signal),
    };
  }

  async rememberRecent(query, answer) {
    const [first] = query.images;
    rememberQuery({
      params: toParams(query).toString(),
      title: baseName(answer.asked.images[0]?.name ?? "image"),
      detail: askedInWords(query, answer).slice(1, -1).join(" · "),
      picture: await smallPicture((await this.pictureOf(first, SMALL_PX)).src),
      when: Date.now(),
    });
  }
}

/** Uploads go along as files, indexed images by their ids; the address then takes the ids that the server tells. */
async function askServer(query, signal) {
  const parts = await Promise.all(query.images.map((id) => (indexed.has(id) ? null : uploadOf(id))));
  if (query.region && parts[0] === null && parts.some(Boolean)) {
    // uploads count before ids, and a box belongs to the first image
    parts[0] = new File([await api.fetchBlob(api.originalUrl(query.images[0]), signal)], indexed.get(query.images[0]) ?? "image");
  }
  const order = [...query.images.filter((_, n) => parts[n]), ...query.images.filter((_, n) => !parts[n])];
  const request = {
    like: query.like, not: query.not, filters: filtersForApi(query.filters), options: query.options,
    ...(query.region && { region: query.region }),
  };
  const answer = await api.search(request, query.images.filter((_, n) => !parts[n]), parts.filter(Boolean), signal);
  for (const [n, image] of answer.asked.images.entries()) {
    if (image.indexed) indexed.set(image.id, image.name);
    if (order[n] && image.id && order[n] !== image.id) await renameUpload(order[n], image.id);
  }
  return answer;
}

function remember(key, answer) {
  answers.delete(key);
  answers.set(key, answer);
  for (const old of [...answers.keys()].slice(0, Math.max(0, answers.size - KEPT_ANSWERS))) answers.delete(old);
}

/** What was asked, and how long it took, for the line above the results. */
function askedInWords(query, answer) {
  const [first] = answer.asked.images;
  return [
    baseName(first?.name ?? "image"),
    query.images.length > 1 && `${query.images.length} views`,
    query.region && `a box of ${query.region.slice(2).map((side) => Math.round(100 * side)).join(" × ")} %`,
    query.like.length && `${query.like.length} liked`,
    query.not.length && `${query.not.length} not liked`,
    ...filtersInWords(query.filters),
    query.options.expand && `query expansion over ${count(query.options.expand, "result")}`,
    query.options.like_kind && "also of its kind",
    query.options.exact && "exact",
    !query.options.rerank && "patches not compared",
    `${answer.seconds.toFixed(2)} s`,
  ].filter(Boolean);
}

/** Which card and which of its controls has the focus. */
function focusIn(element) {
  const active = element.contains(document.activeElement) ? document.activeElement : null;
  return active && { id: active.closest(".card")?.dataset.id, label: active.getAttribute("aria-label") };
}

function restoreFocus(element, focus) {
  if (!focus) return;
  const card = focus.id && element.querySelector(`.card[data-id="${CSS.escape(focus.id)}"]`);
  const control = card && [...card.querySelectorAll("a, button")].find((one) => one.getAttribute("aria-label") === focus.label);
  (control ?? card?.querySelector(".image") ?? element.querySelector("h2")).focus();
}

/** A picture of a few kilobytes that is part of its own address; empty where the browser cannot show the image. */
async function smallPicture(src) {
  try {
    const image = new Image();
    image.src = src;
    await image.decode();
    const scale = 96 / Math.max(image.naturalWidth, image.naturalHeight);
    const canvas = el("canvas", { width: Math.max(1, Math.round(image.naturalWidth * scale)), height: Math.max(1, Math.round(image.naturalHeight * scale)) });
    canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
    return canvas.toDataURL("image/jpeg", 0.7);
  } catch {
    return "";
  }
}

