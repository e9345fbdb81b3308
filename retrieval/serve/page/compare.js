/**
 * A keeper and a member compared pixel by pixel: side by side, blinking, with a wipe, or as a map of differences.
 *
 * Both are drawn into the keeper's frame at its full size; the member is warped there by the transform that found it, so
 * that a copy that was cropped, turned or mirrored lies on top of what it was made from.
 */

import { fullUrl } from "./api.js";
import { baseName, button, el, foreign, megabytes, pixels, svg } from "./dom.js";
import { openDialog } from "./image_info.js";
import { wholeImage } from "./results.js";

const MODES = { s: "Side by side", b: "Blink", w: "Wipe", d: "Difference" };
const BLINK_MS = 700; // slower than three times a second, which could harm
const GAIN = 4; // differences are shown that many times as strong
const MOST_PIXELS = 24e6; // of a canvas; larger keepers are shown smaller

/**
 * Open the comparison of a group.
 * @param {object} group
 * @param {number} first  which member
 * @param {object} actions  toggle(member): whether it moves after that; moves(member): whether it does
 */
export function compareGroup(group, first, actions, signal, onClose) {
  const view = new Comparison(group, first, actions, signal, onClose);
  view.show();
}

class Comparison {
  constructor(group, member, actions, signal, onClose) {
    Object.assign(this, { group, member, actions, mode: "s", full: false });
    this.end = new AbortController();
    this.stage = el("div", { class: "stage", tabindex: 0, autofocus: true, role: "group", "aria-label": "Comparison" });
    this.told = el("p", { class: "told", "aria-live": "polite" });
    this.choice = button("", { on: { click: () => this.toggle() } });
    this.modes = Object.entries(MODES).map(([key, name]) => button(name, {
      "aria-keyshortcuts": key, on: { click: () => this.setMode(key) },
    }, name, el("kbd", {}, key.toUpperCase())));
    this.zoom = button("", { "aria-keyshortcuts": "z", on: { click: () => this.setZoom(!this.full) } }, "100 %", el("kbd", {}, "Z"));
    this.dialog = openDialog("Compare", "compare", [
      el("div", { class: "compare-bar" },
        el("div", { class: "segments", role: "group", "aria-label": "View" }, this.modes), this.zoom,
        el("span", { class: "gap" }),
        group.members.length > 1 && el("span", { class: "stepper" },
          button("Previous", { "aria-keyshortcuts": "ArrowLeft", on: { click: () => this.step(-1) } }, "‹ Previous"),
          button("Next", { "aria-keyshortcuts": "ArrowRight", on: { click: () => this.step(1) } }, "Next ›")),
        this.choice),
      this.told, this.stage,
    ], signal, () => (this.end.abort(), onClose()));
    this.dialog.addEventListener("keydown", (event) => this.key(event));
    signal.addEventListener("abort", () => this.end.abort(), { once: true });
  }

  get other() {
    return this.group.members[this.member];
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input")) return;
    const key = event.key.toLowerCase();
    if (key in MODES) this.setMode(key);
    else if (key === "z") this.setZoom(!this.full);
    else if (key === "m") this.toggle();
    else if (key === "arrowleft" && !this.full) this.step(-1);
    else if (key === "arrowright" && !this.full) this.step(1);
    else return;
    event.preventDefault();
  }

  step(by) {
    const total = this.group.members.length;
    this.member = (this.member + by + total) % total;
    this.show();
  }

  toggle() {
    this.actions.toggle(this.other);
    this.drawChoice();
  }

  setMode(mode) {
    this.mode = mode;
    this.show();
  }

  setZoom(full) {
    this.full = full;
    this.show();
  }

  drawChoice() {
    const { other } = this;
    this.choice.hidden = !other.spare || other.moved;
    const moves = this.actions.moves(other);
    this.choice.replaceChildren(moves ? "Keep this copy" : "Move this copy", el("kbd", {}, "M"));
    const state = other.moved ? "moved away" : !other.spare ? `stays: ${other.why_not}` : moves ? "is to move" : "is kept";
    this.told.replaceChildren(el("b", {}, foreign(baseName(other.path))), foreign(` ${other.level}${other.how ? `, ${other.how}` : ""}; ${pixels(other)}, ${megabytes(other.bytes)}; ${state}`));
  }

  async show() {
    this.running?.abort();
    this.running = new AbortController();
    const { signal } = this.running;
    this.end.signal.addEventListener("abort", () => this.running.abort(), { once: true });
    this.modes.forEach((one, n) => one.setAttribute("aria-pressed", String(Object.keys(MODES)[n] === this.mode)));
    this.zoom.setAttribute("aria-pressed", String(this.full));
    this.stage.classList.toggle("full", this.full);
    this.drawChoice();
    if (this.mode === "s") {
      this.stage.replaceChildren(sideBySide(this.group.keeper, this.other, this.full, signal));
      return;
    }
    this.stage.setAttribute("aria-busy", "true");
    try {
      const layers = await this.layers();
      if (signal.aborted) return;
      this.stage.replaceChildren({ b: blink, w: wipe, d: difference }[this.mode](layers, signal));
      for (const canvas of this.stage.querySelectorAll("canvas")) canvas.style.width = this.full ? `${canvas.width / devicePixelRatio}px` : "";
    } catch (error) {
      if (!signal.aborted) this.stage.replaceChildren(el("p", { class: "missing" }, "One of the two cannot be shown here."));
    } finally {
      if (!signal.aborted) this.stage.removeAttribute("aria-busy");
    }
  }

  /** The keeper, and the member in the keeper's frame, as canvases of one size. */
  async layers() {
    const { other } = this;
    if (this.drawn?.other !== other) {
      const [keeper, member] = await Promise.all([loaded(this.group.keeper), loaded(other)]);
      const { width, height } = keeper;
      const scale = Math.min(1, Math.sqrt(MOST_PIXELS / (width * height)));
      const size = { width: Math.round(width * scale), height: Math.round(height * scale) };
      const identity = [[1, 0, 0], [0, 1, 0]];
      this.drawn = { other, keeper: warped(keeper, identity, size), member: warped(member, other.transform ?? identity, size) };
    }
    return this.drawn;
  }
}

async function loaded(file) {
  const image = new Image();
  image.src = fullUrl(file);
  await image.decode();
  return { image, width: image.naturalWidth, height: image.naturalHeight };
}

/**
 * An image in the keeper's frame.
 * @param {number[][]} transform  2 × 3, from fractions of the keeper to fractions of the image
 */
function warped({ image, width, height }, transform, size) {
  const canvas = el("canvas", size);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  const [[a, c, e], [b, d, f]] = transform;
  const back = new DOMMatrix([a, b, c, d, e, f]).inverse(); // fractions of the image -> fractions of the keeper
  context.setTransform(new DOMMatrix().scale(size.width, size.height).multiply(back).scale(1 / width, 1 / height));
  context.imageSmoothingQuality = "high";
  context.drawImage(image, 0, 0);
  return canvas;
}

/** Both as they are, with frames around what differs; at 100 % they are scrolled together. */
function sideBySide(keeper, member, full, signal) {
  const pane = (file, name, places) => {
    const box = el("div", { class: "pane-image" }, full ? el("img", { src: fullUrl(file), alt: "" }) : wholeImage(fullUrl(file), file, null));
    if (full) box.firstChild.addEventListener("load", (event) => (event.target.style.width = `${event.target.naturalWidth / devicePixelRatio}px`));
    else if (places.length) box.append(differences(file, places));
    return el("figure", { class: "pane" }, box, el("figcaption", {}, el("b", {}, `${name} `), foreign(baseName(file.path)), ` ${pixels(file)}, ${megabytes(file.bytes)}`));
  };
  const differs = member.differs_at ?? [];
  const panes = [
    pane(keeper, "Kept", differs.map((one) => one.in_keeper)),
    pane(member, "Copy", differs.map((one) => one.in_member)),
  ];
  const boxes = panes.map((one) => one.firstChild);
  for (const [n, box] of boxes.entries()) {
    const other = boxes[1 - n];
    box.addEventListener("scroll", () => {
      const share = (from, to) => to * (from.at / Math.max(1, from.most));
      other.scrollTop = share({ at: box.scrollTop, most: box.scrollHeight - box.clientHeight }, other.scrollHeight - other.clientHeight);
      other.scrollLeft = share({ at: box.scrollLeft, most: box.scrollWidth - box.clientWidth }, other.scrollWidth - other.clientWidth);
    }, { signal });
  }
  return el("div", { class: "side-by-side" }, panes);
}

/** Frames around the places that differ; pixels of the image. */
function differences({ width, height }, places) {
  return svg("svg", { class: "overlay", viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" }, places.map(([x, y, w, h]) =>
    ["under", "box"].map((style) => svg("rect", { class: style, x, y, width: w, height: h }))));
}

function blink({ keeper, member }, signal) {
  const label = el("output", { class: "which" });
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
  let shown = true;
  let timer = 0;
  const turn = () => {
    shown = !shown;
    member.style.visibility = shown ? "visible" : "hidden";
    label.textContent = shown ? "Copy" : "Kept";
  };
  const run = (on) => {
    clearInterval(timer);
    timer = on ? setInterval(turn, BLINK_MS) : 0;
    pause.textContent = on ? "Pause" : "Run";
  };
  const pause = button("", { on: { click: () => run(!timer) } });
  const swap = button("Swap", { on: { click: () => (run(false), turn()) } });
  signal.addEventListener("abort", () => (clearInterval(timer), (member.style.visibility = "")));
  turn();
  run(!still);
  return el("div", { class: "layered" }, el("p", { class: "layer-controls" }, pause, swap, label), el("div", { class: "layers" }, keeper, member));
}

function wipe({ keeper, member }, signal) {
  const cut = (share) => (member.style.clipPath = `inset(0 0 0 ${share}%)`);
  const slider = el("input", { type: "range", min: 0, max: 100, value: "50", "aria-label": "Where the copy begins", on: { input: (event) => cut(event.target.value) } });
  signal.addEventListener("abort", () => (member.style.clipPath = ""));
  cut(50);
  return el("div", { class: "layered" }, el("p", { class: "layer-controls" }, "Kept", slider, "Copy"), el("div", { class: "layers" }, keeper, member));
}

/** How much the two differ at each pixel, times GAIN; where the copy shows nothing the map is empty. */
function difference({ keeper, member }) {
  const { width, height } = keeper;
  const canvas = el("canvas", { width, height });
  const context = canvas.getContext("2d");
  const [one, two] = [keeper, member].map((layer) => layer.getContext("2d").getImageData(0, 0, width, height).data);
  const result = context.createImageData(width, height);
  const out = result.data;
  let sum = 0;
  let shared = 0;
  for (let n = 0; n < out.length; n += 4) {
    if (two[n + 3] < 250) continue;
    const worst = Math.max(Math.abs(one[n] - two[n]), Math.abs(one[n + 1] - two[n + 1]), Math.abs(one[n + 2] - two[n + 2]));
    const strong = Math.min(255, worst * GAIN);
    out[n] = strong;
    out[n + 1] = Math.max(0, 2 * strong - 255);
    out[n + 2] = Math.round(0.2 * strong);
    out[n + 3] = 255;
    sum += worst;
    shared++;
  }
  context.putImageData(result, 0, 0);
  const words = shared
    ? `Largest difference of the three colours at each pixel, ${GAIN} times as bright; on average ${(sum / shared).toFixed(1)} of 255.`
    : "The two share no pixels.";
  return el("div", { class: "layered" }, el("p", { class: "layer-controls" }, words), el("div", { class: "layers" }, canvas));
}
