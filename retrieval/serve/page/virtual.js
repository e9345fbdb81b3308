/**
 * A grid of any number of cells of which only those in sight exist.
 *
 * The element is as high as all rows together, so that the window's scroll bar tells where one is. Browsers limit an
 * element's height (some 17 million pixels); a higher grid is squeezed into MOST_PX, and rows move accordingly.
 */

import { el } from "./dom.js";

const PAGE = 200; // items of one request
const KEPT_PAGES = 40;
const OVERSCAN = 2; // rows above and below those in sight
const CALM_MS = 90; // while the scroll bar is dragged no page is asked for
const MOST_PX = 12e6;
const NARROW_PX = 480; // a phone, which still shows two columns

export class VirtualGrid {
  /**
   * @param {object} options
   * @param {number} options.total  items
   * @param {number} options.width  of a cell at least, in px; less where only one would fit
   * @param {number} options.height  of a cell, in px
   * @param {string} options.label
   * @param {function(number, number): Promise<object[]>} options.load  items from an offset on
   * @param {function(object, number): Node[]} options.draw  what a cell holds
   * @param {function(object, number): void} options.open  a cell was chosen
   * @param {AbortSignal} options.signal  ends the listening
   */
  constructor({ total, width, height, label, load, draw, open, signal }) {
    Object.assign(this, { total, width, height, load, draw, open });
    this.pages = new Map(); // number -> items, or null while they are on their way
    this.cells = new Map(); // index -> element
    this.active = 0; // the cell that Tab comes to
    this.awaited = null; // the cell that was chosen before its item came
    this.columns = 1;
    this.element = el("div", { class: "virtual", role: "list", "aria-label": label });
    this.element.addEventListener("keydown", (event) => this.key(event));
    this.element.addEventListener("click", (event) => this.click(event));
    const soon = () => (this.frame ??= requestAnimationFrame(() => ((this.frame = null), this.update())));
    addEventListener("scroll", soon, { passive: true, signal });
    const observer = new ResizeObserver(soon);
    observer.observe(this.element);
    signal.addEventListener("abort", () => (observer.disconnect(), clearTimeout(this.timer)));
  }

  /** Draw what is in sight. */
  update() {
    if (!this.element.isConnected) return;
    this.columns = Math.max(this.element.clientWidth < NARROW_PX ? 2 : 1, Math.floor(this.element.clientWidth / this.width));
    const rows = Math.ceil(this.total / this.columns);
    const shown = Math.min(rows * this.height, MOST_PX);
    this.element.style.height = `${shown}px`;
    const scrolled = Math.min(Math.max(-this.element.getBoundingClientRect().top, 0), shown);
    const squeezed = scrolled * this.squeeze();
    const first = Math.max(0, Math.floor(squeezed / this.height) - OVERSCAN) * this.columns;
    const last = Math.min(this.total, (Math.ceil((squeezed + innerHeight) / this.height) + OVERSCAN) * this.columns);
    this.shift = scrolled - squeezed;
    for (const [index, cell] of this.cells) {
      if ((index < first || index >= last) && !cell.contains(document.activeElement)) this.drop(index);
    }
    for (let index = first; index < last; index++) this.place(index);
    this.want(first, last);
  }

  /** Scroll to an item; with `focus` it gets the focus. */
  reveal(index, { focus = false } = {}) {
    const row = Math.floor(index / this.columns);
    const top = this.element.getBoundingClientRect().top + scrollY;
    const at = (row * this.height) / this.squeeze();
    const seen = scrollY - top;
    if (!focus || at < seen || at + this.height > seen + innerHeight - 60) scrollTo(0, top + Math.max(0, at - (focus ? innerHeight / 3 : 70)));
    if (!focus) return;
    this.setActive(index);
    this.update();
    this.cells.get(index)?.focus({ preventScroll: true });
  }

  squeeze() {
    return Math.max(1, (Math.ceil(this.total / this.columns) * this.height) / MOST_PX);
  }

  item(index) {
    return this.pages.get(Math.floor(index / PAGE))?.[index % PAGE];
  }

  place(index) {
    let cell = this.cells.get(index);
    if (!cell) {
      cell = el("div", { class: "cell", role: "listitem", tabindex: index === this.active ? 0 : -1, "aria-posinset": index + 1, "aria-setsize": this.total, dataset: { index } });
      this.cells.set(index, cell);
      this.element.append(cell);
    }
    const item = this.item(index);
    if (item && cell.item !== item) {
      cell.item = item;
      cell.replaceChildren(...this.draw(item, index));
    }
    const width = this.element.clientWidth / this.columns;
    cell.style.width = `${width}px`;
    cell.style.height = `${this.height}px`;
    cell.style.transform = `translate(${(index % this.columns) * width}px, ${Math.floor(index / this.columns) * this.height + this.shift}px)`;
  }

  drop(index) {
    this.cells.get(index).remove();
    this.cells.delete(index);
  }

  /** Ask for the pages in sight once the scrolling calms down. */
  want(first, last) {
    clearTimeout(this.timer);
    const wanted = [];
    for (let page = Math.floor(first / PAGE); page * PAGE < last; page++) if (!this.pages.has(page)) wanted.push(page);
    if (wanted.length) this.timer = setTimeout(() => wanted.forEach((page) => this.fetchPage(page)), this.pages.size ? CALM_MS : 0);
  }

  async fetchPage(page) {
    this.pages.set(page, null);
    try {
      this.pages.set(page, await this.load(page * PAGE, PAGE));
    } catch {
      this.pages.delete(page); // asked for again with the next scrolling; whoever loads has told the reader
      return;
    }
    for (const old of [...this.pages.keys()].slice(0, Math.max(0, this.pages.size - KEPT_PAGES))) this.pages.delete(old);
    this.update();
    if (this.awaited !== null && this.item(this.awaited)) this.choose(this.awaited);
  }

  setActive(index) {
    this.cells.get(this.active)?.setAttribute("tabindex", "-1");
    this.active = index;
    this.cells.get(index)?.setAttribute("tabindex", "0");
  }

  key(event) {
    const from = Number(event.target.closest(".cell")?.dataset.index);
    if (Number.isNaN(from)) return;
    const page = Math.max(1, Math.floor(innerHeight / this.height)) * this.columns;
    const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -this.columns, ArrowDown: this.columns, PageUp: -page, PageDown: page, Home: -this.total, End: this.total };
    if (event.key === "Enter" || event.key === " ") this.choose(from);
    else if (event.key in steps) this.reveal(Math.min(Math.max(from + steps[event.key], 0), this.total - 1), { focus: true });
    else return;
    event.preventDefault();
  }

  click(event) {
    const index = Number(event.target.closest(".cell")?.dataset.index);
    if (!Number.isNaN(index)) this.choose(index);
  }

  choose(index) {
    this.setActive(index);
    const item = this.item(index);
    this.awaited = item ? null : index;
    if (item) this.open(item, index);
  }
}
