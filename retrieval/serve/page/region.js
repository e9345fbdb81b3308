/**
 * An image with a box that is drawn on it, with the pointer or the keyboard.
 *
 * The image is shown whole. The box is drawn in an SVG of the image's proportions above it, which keeps the same place
 * at every size; its numbers are fractions of the image.
 */

import { el, svg } from "./dom.js";

const SMALLEST = 0.02; // a shorter side of a box is a click that slipped
const STEP = 0.02; // of the image, for each press of an arrow key
const MIDDLE = Object.freeze([0.25, 0.25, 0.5, 0.5]);

/**
 * @param {object} options
 * @param {string} options.src  address of the image
 * @param {string} options.label  what it shows, for a screen reader
 * @param {number[]|null} options.region  x, y, width, height in [0, 1]
 * @param {function(number[]|null): void} options.onChange  called when a box is finished or taken away
 * @returns {{element: HTMLElement, set: function(number[]|null): void}}
 */
export function regionPicker({ src, label, region, onChange }) {
  const shade = svg("path", { class: "shade", "fill-rule": "evenodd" });
  const under = svg("rect", { class: "under" });
  const box = svg("rect", { class: "box" });
  const overlay = svg("svg", { class: "overlay", viewBox: "0 0 1 1", preserveAspectRatio: "xMidYMid meet" }, shade, under, box);
  const image = el("img", { src, alt: "", draggable: "false" });
  const element = el(
    "div",
    {
      class: "region-picker", tabindex: 0, role: "application", "aria-label": `${label}. Draw a box to search for a part`,
      "aria-describedby": "region-help",
    },
    image, overlay,
  );
  let size = { width: 1, height: 1 };
  let current = region;

  function set(next) {
    current = next;
    element.classList.toggle("boxed", next !== null);
    if (next === null) return;
    const [x, y, w, h] = next.map((value, n) => value * (n % 2 ? size.height : size.width));
    for (const rect of [under, box]) {
      for (const [name, value] of Object.entries({ x, y, width: w, height: h })) rect.setAttribute(name, value);
    }
    shade.setAttribute("d", `M0 0H${size.width}V${size.height}H0zM${x} ${y}V${y + h}H${x + w}V${y}z`);
  }

  image.addEventListener("load", () => {
    size = { width: image.naturalWidth, height: image.naturalHeight };
    overlay.setAttribute("viewBox", `0 0 ${size.width} ${size.height}`);
    set(current);
  });
  image.addEventListener("error", () => element.classList.add("unshowable"));

  /** Fractions of the image under the pointer, clipped to it. */
  function place(event) {
    const point = new DOMPoint(event.clientX, event.clientY).matrixTransform(overlay.getScreenCTM().inverse());
    return [clip(point.x / size.width), clip(point.y / size.height)];
  }

  element.addEventListener("pointerdown", (down) => {
    if (down.button || element.classList.contains("unshowable")) return;
    const [fromX, fromY] = place(down);
    const before = current;
    element.setPointerCapture(down.pointerId);
    const drawing = new AbortController();
    const draw = (event) => {
      const [x, y] = place(event);
      set([Math.min(x, fromX), Math.min(y, fromY), Math.abs(x - fromX), Math.abs(y - fromY)]);
    };
    const end = (event) => {
      drawing.abort();
      if (event.type === "pointercancel" || Math.min(current?.[2] ?? 0, current?.[3] ?? 0) < SMALLEST) set(before);
      else onChange(current);
    };
    element.addEventListener("pointermove", draw, { signal: drawing.signal });
    for (const name of ["pointerup", "pointercancel"]) element.addEventListener(name, end, { signal: drawing.signal });
  });

  element.addEventListener("keydown", (event) => {
    const next = byKey(current, event);
    if (next === undefined) return;
    event.preventDefault();
    set(next);
    onChange(next);
  });

  set(region);
  return { element, set };
}

/** The box after a key; undefined for a key that means nothing here. Arrows move it, with Shift they change its size. */
export function byKey(region, { key, shiftKey }) {
  if (key === "Enter" && !region) return MIDDLE.slice();
  if ((key === "Escape" || key === "Delete" || key === "Backspace") && region) return null;
  const steps = { ArrowLeft: [-STEP, 0], ArrowRight: [STEP, 0], ArrowUp: [0, -STEP], ArrowDown: [0, STEP] };
  if (!(key in steps) || !region) return undefined;
  const [dx, dy] = steps[key];
  const [x, y, w, h] = region;
  if (shiftKey) return [x, y, Math.min(Math.max(w + dx, SMALLEST), 1 - x), Math.min(Math.max(h + dy, SMALLEST), 1 - y)];
  return [Math.min(Math.max(x + dx, 0), 1 - w), Math.min(Math.max(y + dy, 0), 1 - h), w, h];
}

function clip(value) {
  return Math.min(Math.max(value, 0), 1);
}
