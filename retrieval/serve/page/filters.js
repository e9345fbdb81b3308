/** Filters and options of a search as controls. */

import * as api from "./api.js";
import { chips } from "./chips.js";
import { baseName, button, el } from "./dom.js";
import { DEFAULT_OPTIONS, changed, filtersInWords } from "./query.js";

/**
 * A form that reports each finished change.
 * @param {object} query  what the fields show at first
 * @param {function(function(object): object): void} onChange  gets the step from the query of that moment to the next
 * @param {function(): void} onClear  the form is to be made anew, without filters
 */
export function filterForm(query, onChange, onClear, signal) {
  const set = (parts) => onChange((now) => {
    const filters = { ...now.filters, ...parts };
    mark(filters);
    return changed(now, { filters });
  });
  const setOption = (parts) => onChange((now) => changed(now, { options: { ...now.options, ...parts } }));
  const folders = el("div");
  const tags = el("div");
  const number = el("span", { class: "badge" });
  const clear = button("Clear filters", { on: { click: onClear } });

  function mark(filters) {
    const used = filtersInWords(filters).length;
    number.textContent = String(used);
    number.hidden = clear.hidden = used === 0;
  }

  mark(query.filters);
  offer(folders, tags, query.filters, set, signal);
  return el(
    "details",
    { class: "filters", open: !number.hidden },
    el("summary", {}, "Filters and options", number),
    el(
      "form",
      { on: { submit: (event) => event.preventDefault() } },
      folders,
      el("div", { class: "pair" }, dateField("From", "after", query, set), dateField("Before", "before", query, set)),
      textField("Camera", query.filters.camera, "words of its name", (camera) => set({ camera })),
      tags,
      placeFields(query.filters.near, (near) => set({ near })),
      optionFields(query.options, setOption),
      clear,
    ),
  );
}

/** Folders and tags that the index knows; without them the fields still take what is typed. */
async function offer(folderPlace, tagPlace, filters, set, signal) {
  const draw = (folders, tags) => {
    folderPlace.replaceChildren(chips({
      label: "Folder", values: filters.under, known: folders, hint: "any", show: baseName, onChange: (under) => set({ under }),
    }));
    tagPlace.replaceChildren(chips({ label: "Tags", values: filters.tags, known: tags, hint: "any", onChange: (values) => set({ tags: values }) }));
  };
  draw([], []);
  try {
    const [folders, tags] = await Promise.all([api.folders(signal), api.tags(signal)]);
    draw(folders.map((folder) => folder.path), tags.map((one) => one.tag));
  } catch (error) {
    if (error.name !== "AbortError") console.debug(error.message);
  }
}

function dateField(label, name, query, set) {
  const value = query.filters[name];
  const whole = { 4: `${value}-01-01`, 7: `${value}-01` }[value.length] ?? value; // 2023 and 2023-05 are dates as well
  return labelled(label, "date", { value: whole, on: { change: (event) => set({ [name]: event.target.value }) } });
}

function textField(label, value, hint, onChange) {
  return labelled(label, "text", { value, placeholder: hint, on: { change: (event) => onChange(event.target.value.trim()) } });
}

/** A circle on the map: all three numbers, or none. */
function placeFields(near, onChange) {
  const inputs = ["Latitude", "Longitude", "Radius in km"].map((label, n) => labelled(label, "number", {
    value: near ? String(near[n]) : "", step: "any", ...[{ min: -90, max: 90 }, { min: -180, max: 180 }, { min: 0 }][n],
    on: { change: read },
  }));

  function read() {
    const fields = inputs.map((one) => one.querySelector("input"));
    const given = fields.filter((field) => field.value !== "");
    const km = fields[2];
    km.setCustomValidity(km.value !== "" && Number(km.value) <= 0 ? "more than 0" : "");
    if (given.length === 0) onChange(null);
    else if (given.length === 3 && fields.every((field) => field.reportValidity())) onChange(fields.map((field) => Number(field.value)));
  }

  return el("fieldset", {}, el("legend", {}, "Near a place"), el("div", { class: "triple" }, inputs));
}

function optionFields(options, set) {
  const check = (label, name, help) => el(
    "label", { class: "check" },
    el("input", { type: "checkbox", checked: options[name], on: { change: (event) => set({ [name]: event.target.checked }) } }),
    el("span", {}, label, el("small", {}, help)),
  );
  const select = (label, name, values) => {
    const all = [...new Set([...values, options[name]])].sort((a, b) => a - b);
    const field = el("select", { on: { change: (event) => set({ [name]: Number(event.target.value) }) } },
      all.map((value) => el("option", { value: String(value) }, value === 0 ? "none" : String(value))));
    field.value = String(options[name]);
    return el("label", { class: "field" }, el("span", {}, label), field);
  };
  const differs = Object.keys(DEFAULT_OPTIONS).some((name) => options[name] !== DEFAULT_OPTIONS[name]);
  return el(
    "details",
    { class: "options", open: differs },
    el("summary", {}, "Options"),
    el("div", { class: "pair" }, select("Results", "top", [20, 50, 100, 200]), select("Query expansion", "expand", [0, 3, 5])),
    check("Compare patches", "rerank", "needed for probabilities and boxes"),
    check("Also of its kind", "like_kind", "other images of the motif, product or building as well"),
    check("Exact", "exact", "compares with every image; slower"),
    check("Include the query itself", "include_self", "where it is indexed"),
  );
}

let made = 0;

function labelled(label, type, props) {
  const id = `field-${++made}`;
  return el("div", { class: "field" }, el("label", { for: id }, label), el("input", { id, type, ...props }));
}
