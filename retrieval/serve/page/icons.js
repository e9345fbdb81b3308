/** The signs on buttons, drawn on a grid of 20 × 20. */

import { svg } from "./dom.js";

const PATHS = {
  up: "M6.5 17V8.8l3.4-6.3c1.3 0 2.1.9 2 2.1L11.4 8h4a1.6 1.6 0 0 1 1.6 1.9l-1.1 5.6A2 2 0 0 1 14 17H6.5zM3 9h3.5v8H3z",
  down: "M13.5 3v8.2l-3.4 6.3c-1.3 0-2.1-.9-2-2.1l.5-3.4h-4A1.6 1.6 0 0 1 3 10.1l1.1-5.6A2 2 0 0 1 6 3h7.5zM17 11h-3.5V3H17z",
  search: "M8.7 3a5.7 5.7 0 1 1 0 11.4 5.7 5.7 0 0 1 0-11.4zM13 13l4.2 4.2",
  add: "M10 4v12M4 10h12",
  close: "M5 5l10 10M15 5L5 15",
  camera: "M3 6.5h3l1.2-2h5.6l1.2 2h3V16H3zM10 8.2a2.8 2.8 0 1 1 0 5.6 2.8 2.8 0 0 1 0-5.6z",
  info: "M10 2.5a7.5 7.5 0 1 1 0 15 7.5 7.5 0 0 1 0-15zM10 9v4.5M10 6.2v.6",
  why: "M3 4h5v12H3zM12 4h5v12h-5zM6 8l8 1.5M6 12l8-1",
  box: "M3.5 7V3.5H7M13 3.5h3.5V7M16.5 13v3.5H13M7 16.5H3.5V13",
};

/** A sign for the eye only; whatever holds it has a label. */
export function icon(name) {
  return svg("svg", { class: "icon", viewBox: "0 0 20 20", "aria-hidden": "true" }, svg("path", { d: PATHS[name] }));
}
