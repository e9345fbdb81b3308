/** Results as cards: matches first, possible matches, and what is less like the query folded below. */

import { thumbnailUrl } from "./api.js";
import { baseName, button, clean, count, day, el, factRow, fileName, folderLine, foreign, percent, pixels, svg } from "./dom.js";
import { icon } from "./icons.js";

const CARD_PX = 640;
const FEW = 3; // fewer results are shown larger
const VERDICTS = {
  same: { word: "match", style: "same" },
  perhaps: { word: "possible match", style: "perhaps" },
  "no match": { word: "unlikely", style: "" },
};

/** Results by what is believed of them. One that was not compared patch by patch has no verdict. */
export function sorted(results) {
  const of = (verdict) => results.filter((result) => result.verdict === verdict);
  return { matches: of("same"), possible: of("perhaps"), unlikely: of("no match"), unjudged: of(null) };
}

/** One line on the results as a whole; it never says more than the probabilities do. */
export function headline({ matches, possible, unlikely, unjudged }) {
  if (matches.length) return count(matches.length, "match", "matches");
  if (possible.length) return `${count(possible.length, "possible match", "possible matches")}, none of them certain`;
  if (unlikely.length) return "No match found";
  return unjudged.length ? `${count(unjudged.length, "image")} by similarity` : "No image meets these conditions";
}

/**
 * @param {object} answer  of /api/search
 * @param {object} actions  like(id), unlike(id), search(id), add(id), inspect(result); whyUrl(id)
 * @param {object} query  its likes mark the cards
 */
export function resultList(answer, actions, query) {
  const groups = sorted(answer.results);
  const { matches, possible, unlikely, unjudged } = groups;
  const believed = matches.length + possible.length;
  const section = (title, results) => results.length > 0 && el(
    "section", {}, title && el("h3", { class: "group" }, title), cards(results, actions, query),
  );
  return el(
    "div",
    { class: "results", on: { keydown: moveBetweenCards } },
    el("h2", { tabindex: -1 }, headline(groups)),
    section(possible.length ? "Matches" : "", matches),
    section(matches.length ? "Possible matches" : "", possible),
    section("", unjudged),
    unlikely.length > 0 && el(
      "details",
      { class: "fold", open: believed === 0 },
      el("summary", {}, `Less like it (${unlikely.length})`),
      cards(unlikely, actions, query),
    ),
  );
}

function cards(results, actions, query) {
  return el("ol", { class: results.length < FEW ? "cards few" : "cards" }, results.map((result) => card(result, actions, query)));
}

function card(result, actions, query) {
  const name = baseName(result.path);
  const verdict = VERDICTS[result.verdict];
  const label = `${result.rank}. ${clean(name)}${result.probability === null ? "" : `, ${percent(result.probability)} probable`}`;
  const picture = el(
    "a",
    { class: "image", href: actions.whyUrl(result.id), "aria-label": `${label}. Why?`, draggable: "false" },
    wholeImage(thumbnailUrl(result.id, CARD_PX), result, result.verdict === "no match" ? null : result.box),
  );
  const element = el(
    "li",
    { class: "card", draggable: "true", dataset: { id: result.id, rank: result.rank } },
    picture,
    el(
      "div",
      { class: "text" },
      el(
        "p",
        { class: "figure" },
        el("strong", {}, result.probability === null ? result.score.toFixed(3) : percent(result.probability)),
        verdict && el("span", { class: `badge ${verdict.style}` }, verdict.word),
      ),
      el("h4", {}, fileName(name)),
      folderLine(result.path),
      el("p", { class: "small" }, factRow(facts(result))),
      judgement(result, actions, query),
    ),
  );
  element.addEventListener("dragstart", (event) => {
    event.dataTransfer.setData("text/x-seenit-id", result.id);
    event.dataTransfer.effectAllowed = "copy";
  });
  element.addEventListener("keydown", (event) => byKey(event, result, actions));
  return element;
}

/** The image as it is, nothing cut off, with a box over it. */
export function wholeImage(src, { width, height }, box) {
  const place = box && { x: box[0] * width, y: box[1] * height, width: box[2] * width, height: box[3] * height };
  const image = el("img", { src, alt: "", loading: "lazy", decoding: "async", width, height, draggable: "false" });
  image.addEventListener("error", () => image.replaceWith(el("span", { class: "missing" }, "cannot be shown")), { once: true });
  return [
    image,
    place && svg("svg", { class: "overlay", viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "xMidYMid meet", "aria-hidden": "true" },
      svg("rect", { class: "under", ...place }), svg("rect", { class: "box", ...place })),
  ];
}

function facts(result) {
  const copies = result.copies.length;
  return [
    result.probability !== null && `score ${result.score.toFixed(3)}`,
    result.num_inliers !== null && count(result.num_inliers, "inlier"),
    Boolean(result.turn) && `turned by ${result.turn} degrees`,
    pixels(result),
    day(result.taken_at),
    result.camera,
    copies > 0 && `${copies} more ${copies === 1 ? "copy" : "copies"}`,
    ...result.tags.map((tag) => `#${tag}`),
  ].filter(Boolean);
}

function judgement(result, actions, query) {
  const thumb = (list, sign, label, act) => button("", {
    class: "icon-button", "aria-label": label, title: label, "aria-pressed": String(query[list].includes(result.id)),
    on: { click: () => act(result.id) },
  }, icon(sign));
  const action = (sign, label, act) => button("", { class: "icon-button", "aria-label": label, title: label, on: { click: act } }, icon(sign));
  return el(
    "div",
    { class: "actions" },
    query.images.length > 0 && thumb("like", "up", "More like this (L)", actions.like),
    query.images.length > 0 && thumb("not", "down", "Not this (N)", actions.unlike),
    el("span", { class: "gap" }),
    el("a", { class: "icon-button", href: actions.whyUrl(result.id), "aria-label": "Why this result (W)", title: "Why this result (W)" }, icon("why")),
    action("search", "Search with this image (S)", () => actions.search(result.id)),
    query.images.length > 0 && action("add", "Add as another view (A)", () => actions.add(result.id)),
    action("info", "About this image (I)", () => actions.inspect(result)),
  );
}

/** Letters act on the card that has the focus. */
function byKey(event, result, actions) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const act = {
    l: () => actions.like(result.id),
    n: () => actions.unlike(result.id),
    s: () => actions.search(result.id),
    a: () => actions.add(result.id),
    i: () => actions.inspect(result),
    w: () => actions.why(result.id),
  }[event.key.toLowerCase()];
  if (!act) return;
  event.preventDefault();
  act();
}

/** Arrows go from card to card as they lie on the page. */
function moveBetweenCards(event) {
  const from = event.target.closest(".card");
  if (!from || !event.key.startsWith("Arrow")) return;
  const all = [...event.currentTarget.querySelectorAll(".card")].filter((one) => one.offsetParent);
  const perRow = all.filter((one) => one.offsetTop === from.offsetTop && one.parentElement === from.parentElement).length;
  const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -perRow, ArrowDown: perRow }[event.key];
  const to = all[all.indexOf(from) + step];
  if (!to) return;
  event.preventDefault();
  to.querySelector(".image").focus();
  to.scrollIntoView({ block: "nearest" });
}

