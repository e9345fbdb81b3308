/** A list of words that can be added to, one at a time, and taken from: tags, folders. */

import { button, clean, el, foreign } from "./dom.js";
import { icon } from "./icons.js";

let made = 0;

/**
 * @param {object} options
 * @param {string} options.label
 * @param {string[]} options.values  chosen so far
 * @param {string[]} options.known  offered while typing
 * @param {string} [options.hint]  shown in the empty field
 * @param {function(string): string} [options.show]  how a value is written
 * @param {function(string[]): void} options.onChange
 */
export function chips({ label, values, known, hint = "", show = (value) => value, onChange }) {
  const id = `chips-${++made}`;
  let chosen = [...values];
  const list = el("ul", { class: "chips", "aria-label": label });
  const offers = el("datalist", { id: `${id}-known` }, known.map((value) => el("option", { value: clean(value) })));
  const input = el("input", {
    id, type: "text", list: `${id}-known`, placeholder: hint, autocomplete: "off",
    on: {
      keydown: (event) => event.key === "Enter" && (event.preventDefault(), add()),
      change: add,
    },
  });

  function add() {
    const typed = input.value.trim();
    const value = known.find((one) => clean(one) === typed) ?? typed; // a folder's name may not be showable as it is
    input.value = "";
    if (value && !chosen.includes(value)) change([...chosen, value]);
  }

  function change(next) {
    chosen = next;
    draw();
    onChange(chosen);
  }

  function draw() {
    list.replaceChildren(...chosen.map((value) => el(
      "li", {}, foreign(show(value)),
      button("", {
        class: "quiet", "aria-label": `Remove ${clean(show(value))}`,
        on: { click: () => (change(chosen.filter((one) => one !== value)), input.focus()) },
      }, icon("close")),
    )));
    list.hidden = !chosen.length;
  }

  draw();
  return el("div", { class: "field" }, el("label", { for: id }, label), list, input, offers);
}
