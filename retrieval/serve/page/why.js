/** Why: a query and a result side by side, the regions that match, lines between patches, and a map of similarity. */

import * as api from "./api.js";
import { baseName, button, clean, count, el, foreign, percent, shortFolder, svg } from "./dom.js";
import { go } from "./router.js";
import { uploadOf } from "./uploads.js";

const SIZE_PX = 1280;
const VIEW_PX = 160;
const GAP = 24; // between the images, in units of the drawing
const DOT = 9; // radius of a patch's dot, in units of the drawing
const LONG = 1000; // height of the images side by side, or width of them one above the other
const WORDS = { same: "match", perhaps: "possible match", "no match": "unlikely" };
const RAMP = [[48, 18, 110], [38, 98, 174], [30, 155, 138], [140, 200, 74], [253, 221, 60]]; // from unlike to alike

export function whyView() {
  return async (outlet, params, signal) => {
    document.title = "Why · seenit";
    outlet.append(el("p", { class: "missing" }, "Comparing the two images…"));
    const views = params.getAll("query"); // all images of the query, of which one is compared
    const at = Math.min(Math.max(Number(params.get("view")) || 0, 0), Math.max(0, views.length - 1));
    const [query, image] = [views[at] ?? "", params.get("image") ?? ""];
    const region = at === 0 ? regionOf(params.get("region")) : null; // which is of the first image
    try {
      const upload = await uploadOf(query);
      const src = [upload ? URL.createObjectURL(upload) : api.thumbnailUrl(query, SIZE_PX), api.thumbnailUrl(image, SIZE_PX)];
      if (upload) signal.addEventListener("abort", () => URL.revokeObjectURL(src[0]), { once: true });
      const ask = (similarity) => api.explain(upload ?? query, image, region, similarity, signal);
      const [answer, shown, ...sizes] = await Promise.all([ask(false), api.imageInfo(image, signal), ...src.map(sizeOf)]);
      if (signal.aborted) return;
      draw(outlet, { answer, shown, src, sizes, region, ask, signal });
      if (views.length > 1) outlet.querySelector(".why-head").append(await viewChooser(views, at, params, signal));
    } catch (error) {
      if (error.name === "AbortError" || signal.aborted) return;
      outlet.replaceChildren(el("div", { class: "failure", role: "alert" }, el("h1", {}, "These two cannot be compared"),
        el("p", {}, clean(error.message)), el("p", {}, el("a", { class: "button", href: "/" }, "New search"))));
    }
  };
}

/** The images of the query as buttons; the one that is compared is pressed. */
async function viewChooser(views, at, params, signal) {
  const choose = (n) => {
    const chosen = new URLSearchParams(params);
    chosen.set("view", String(n));
    go("/why", chosen, { replace: true });
  };
  const buttons = await Promise.all(views.map(async (id, n) => {
    const upload = await uploadOf(id);
    const src = upload ? URL.createObjectURL(upload) : api.thumbnailUrl(id, VIEW_PX);
    if (upload) signal.addEventListener("abort", () => URL.revokeObjectURL(src), { once: true });
    return button("", { "aria-pressed": String(n === at), "aria-label": `Compare view ${n + 1}`, on: { click: () => choose(n) } }, el("img", { src, alt: "" }));
  }));
  return el("div", { class: "view-chooser", role: "group", "aria-label": "View of the query that is compared" },
    el("span", { class: "small" }, "Compared view"), buttons);
}

function regionOf(text) {
  const values = (text ?? "").split(",").map(Number);
  return values.length === 4 && values.every(Number.isFinite) ? values : null;
}

async function sizeOf(src) {
  const image = new Image();
  image.src = src;
  try {
    await image.decode();
    return { width: image.naturalWidth, height: image.naturalHeight };
  } catch {
    return { width: 400, height: 300 }; // a kind that browsers do not show: an empty frame, the places still hold
  }
}

function draw(outlet, { answer, shown, src, sizes, region, ask, signal }) {
  const names = [baseName(answer.query), baseName(shown.path)];
  const drawing = new Drawing(answer, sizes, src, names, region);
  const wide = matchMedia("(min-width: 720px)");
  const place = el("div", { class: "drawing" });
  const arrange = () => place.replaceChildren(drawing.arranged(wide.matches));
  wide.addEventListener("change", arrange, { signal });
  arrange();
  const back = button("Back to the results", { class: "quiet", on: { click: () => history.back() } });
  outlet.replaceChildren(
    el("div", { class: "why-head" },
      el("p", {}, history.length > 1 && back),
      el("h1", {}, "Why ", foreign(names[1]), "?"),
      el("p", { class: "figure" },
        el("strong", {}, answer.probability === null ? "not calibrated" : percent(answer.probability)),
        answer.verdict && el("span", { class: `badge ${{ same: "same", perhaps: "perhaps" }[answer.verdict] ?? ""}` }, WORDS[answer.verdict])),
      el("p", { class: "reason" }, inWords(answer)),
    ),
    place,
    el("div", { class: "captions" },
      el("p", {}, el("b", {}, "Query "), foreign(names[0])),
      el("p", {}, el("b", {}, "Image "), foreign(names[1]), " ", el("small", {}, foreign(shortFolder(shown.path))))),
    controls(drawing, arrange, answer, ask),
  );
}

function inWords(answer) {
  const inliers = count(answer.num_inliers ?? 0, "pair");
  if (!answer.num_inliers) return "No patches of the two images agree on one place and shape.";
  return `${inliers} of patches ${answer.num_inliers === 1 ? "is" : "are"} consistent with one affine transform between the images (inliers).`;
}

/** All lines, one pair after the other, similarity. */
function controls(drawing, arrange, answer, ask) {
  const total = answer.pairs.length;
  const told = el("output", {}, total ? "point at a patch to see its pair" : "");
  drawing.onPick = (index) => {
    told.textContent = index === null ? "point at a patch to see its pair" : `pair ${index + 1} of ${total}, cosine ${answer.pairs[index][4].toFixed(2)}`;
    if (index !== null) slider.value = String(index + 1);
  };
  const slider = el("input", { id: "pair", type: "range", min: 1, max: Math.max(1, total), value: "1", on: { input: (event) => drawing.pick(Number(event.target.value) - 1) } });
  const check = (label, act) => el("label", { class: "check" }, el("input", { type: "checkbox", on: { change: act } }), el("span", {}, label));
  const failure = el("span", { class: "form-error", role: "alert" });
  const heat = async (event) => {
    const box = event.target;
    try {
      if (box.checked && !drawing.maps) {
        box.disabled = true;
        const { query_similarity, image_similarity } = await ask(true);
        drawing.maps = [query_similarity, image_similarity].map(picture);
      }
      drawing.heat = box.checked;
      scale.hidden = !box.checked;
      arrange();
    } catch (error) {
      box.checked = false;
      failure.textContent = clean(error.message);
    } finally {
      box.disabled = false;
    }
  };
  const scale = el("span", { class: "scale", hidden: true }, "unlike", el("img", { src: rampPicture(), alt: "" }), "alike");
  return el("div", { class: "why-controls" },
    total > 0 && check("All lines", (event) => drawing.showLines(event.target.checked)),
    total > 0 && el("span", { class: "pair-field" }, el("label", { for: "pair" }, "Pair"), slider),
    told,
    check("Similarity of each patch", heat), scale, failure);
}

/** Both images in one SVG, so that lines lead from one to the other. */
class Drawing {
  constructor(answer, sizes, src, names, region) {
    Object.assign(this, { answer, sizes, src, names, region, heat: false, maps: null, lines: false, onPick: () => {} });
  }

  /** The drawing with the images side by side, or one above the other. */
  arranged(wide) {
    const frames = wide ? besideEachOther(this.sizes) : aboveEachOther(this.sizes);
    const [width, height] = [Math.max(...frames.map((f) => f.x + f.width)), Math.max(...frames.map((f) => f.y + f.height))];
    const at = (frame, x, y) => [frame.x + x * frame.width, frame.y + y * frame.height];
    this.ends = this.answer.pairs.map(([qx, qy, ix, iy]) => [at(frames[0], qx, qy), at(frames[1], ix, iy)]);
    this.pairs = this.answer.pairs.map((pair, n) => this.pair(pair, n));
    this.element = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": this.label(), class: this.lines ? "lines" : "" },
      frames.map((frame, n) => this.image(frame, n)),
      this.region && this.outline(frames[0], this.region, "asked"),
      this.answer.query_box && this.outline(frames[0], this.answer.query_box, "box"),
      this.answer.box && this.outline(frames[1], this.answer.box, "box"),
      this.pairs);
    this.element.addEventListener("pointermove", (event) => this.pick(this.nearest(event)));
    this.element.addEventListener("pointerleave", () => this.pick(null));
    return this.element;
  }

  label() {
    return `${clean(this.names[0])} and ${clean(this.names[1])} with ${count(this.answer.pairs.length, "pair")} of matching patches`;
  }

  image(frame, n) {
    const place = { x: frame.x, y: frame.y, width: frame.width, height: frame.height, preserveAspectRatio: "none" };
    return [
      svg("rect", { class: "frame", ...place }),
      svg("image", { href: this.src[n], ...place }),
      this.heat && svg("image", { class: "heat", href: this.maps[n], ...place }),
    ].filter(Boolean);
  }

  outline(frame, [x, y, w, h], style) {
    const place = { x: frame.x + x * frame.width, y: frame.y + y * frame.height, width: w * frame.width, height: h * frame.height };
    return [svg("rect", { class: "under", ...place }), svg("rect", { class: style, ...place })];
  }

  pair([, , , , cosine], n) {
    const [[x1, y1], [x2, y2]] = this.ends[n];
    const colour = `rgb(${colourOf(cosine).join(" ")})`;
    const r = DOT;
    return svg("g", { class: "match-pair" },
      svg("line", { class: "case", x1, y1, x2, y2 }), svg("line", { x1, y1, x2, y2, stroke: colour }),
      svg("circle", { cx: x1, cy: y1, r, fill: colour }), svg("circle", { cx: x2, cy: y2, r, fill: colour }));
  }

  /** The pair with an end near the pointer; null where there is none. */
  nearest(event) {
    const point = new DOMPoint(event.clientX, event.clientY).matrixTransform(this.element.getScreenCTM().inverse());
    let best = null;
    let least = this.element.viewBox.baseVal.width / 28;
    for (const [n, ends] of this.ends.entries()) {
      for (const [x, y] of ends) {
        const distance = Math.hypot(x - point.x, y - point.y);
        if (distance < least) [best, least] = [n, distance];
      }
    }
    return best;
  }

  pick(index) {
    this.element.classList.toggle("picking", index !== null);
    for (const [n, pair] of this.pairs.entries()) pair.classList.toggle("picked", n === index);
    if (index !== null) this.element.append(this.pairs[index]); // above the others
    this.onPick(index);
  }

  showLines(all) {
    this.lines = all;
    this.element.classList.toggle("lines", all);
  }
}

function besideEachOther(sizes) {
  const widths = sizes.map(({ width, height }) => (LONG * width) / height);
  return [{ x: 0, y: 0, width: widths[0], height: LONG }, { x: widths[0] + GAP, y: 0, width: widths[1], height: LONG }];
}

function aboveEachOther(sizes) {
  const heights = sizes.map(({ width, height }) => (LONG * height) / width);
  return [{ x: 0, y: 0, width: LONG, height: heights[0] }, { x: 0, y: heights[0] + GAP, width: LONG, height: heights[1] }];
}

/** A similarity map (rows of cosines) as a small picture, which the browser enlarges smoothly. */
function picture(rows) {
  const canvas = el("canvas", { width: rows[0].length, height: rows.length });
  const context = canvas.getContext("2d");
  const pixels = context.createImageData(canvas.width, canvas.height);
  rows.flat().forEach((cosine, n) => pixels.data.set([...colourOf(cosine), 255], 4 * n));
  context.putImageData(pixels, 0, 0);
  return canvas.toDataURL();
}

function rampPicture() {
  return picture([Array.from({ length: 48 }, (_, n) => n / 47)]);
}

/** Red, green and blue of a cosine; 0 and less is unlike, 1 the same. */
function colourOf(cosine) {
  const at = Math.min(Math.max(cosine, 0), 1) * (RAMP.length - 1);
  const low = Math.min(Math.floor(at), RAMP.length - 2);
  return RAMP[low].map((value, n) => Math.round(value + (RAMP[low + 1][n] - value) * (at - low)));
}

