/**
 * The page of `seenit duplicates --html`: choices by pointer and keyboard, written to a file for `--apply`.
 *
 * It is put behind dom.js and choices.js of the server's page, with which it makes one module.
 */

const page = JSON.parse(document.getElementById("groups").textContent);
const choices = new Choices(page.run);
const list = document.querySelector(".groups");
const bar = document.querySelector(".apply-bar");
const KEYS = [["↑ ↓", "group"], ["Enter", "move what is suggested"], ["K", "keep all"], ["1–9", "a copy"], ["0", "the kept one"], ["U", "undecided"]];

/** The files of a group in the order of its tiles. */
const filesOf = (group) => [group.keeper, ...group.members];

function start() {
  if (!page.groups.length) return;
  const keys = document.querySelector(".keys");
  keys.append(...KEYS.map(([key, words]) => el("span", {}, el("kbd", {}, key), ` ${words}`)));
  keys.hidden = false;
  for (const group of page.groups) connect(group);
  const accept = () => (choices.acceptAll(page.groups), refreshAll());
  const forget = () => (choices.clear(), refreshAll());
  bar.append(totals, el("span", { class: "gap" }),
    button("Accept all", { "aria-label": "Accept all suggestions", on: { click: accept } }),
    button("Forget", { "aria-label": "Forget the choices", class: "quiet", on: { click: forget } }),
    save);
  keys.before(el("p", { class: "move-to" }, el("label", { for: "move-to" }, "Move to"), target));
  bar.hidden = false;
  document.addEventListener("keydown", onKey);
  refreshAll();
}

const totals = el("p", { class: "totals", "aria-live": "polite" });
const target = el("input", { id: "move-to", value: page.move_to, placeholder: "named later, with --move-to" });
const save = button("Save choices…", { class: "primary", on: { click: saveChoices } });

/** Give a group's element its buttons. */
function connect(group) {
  const element = elementOf(group);
  element.querySelectorAll(".tile").forEach((tile, n) => {
    const file = filesOf(group)[n];
    const switcher = tile.querySelector(".switch");
    switcher.hidden = !file.spare;
    switcher.addEventListener("click", () => toggle(group, file));
  });
}

function elementOf(group) {
  return list.querySelector(`.dup-group[data-group="${group.group}"]`);
}

function refresh(group) {
  const element = elementOf(group);
  const moves = choices.moves(group);
  const decided = choices.decided(group);
  const moving = filesOf(group).filter((file) => moves.has(file.file));
  const size = `${count(moving.length, "file")}, ${megabytes(moving.reduce((sum, file) => sum + file.bytes, 0))}`;
  element.classList.toggle("decided", decided);
  element.querySelectorAll(".tile").forEach((tile, n) => drawTile(tile, filesOf(group)[n], n === 0, moves, decided));
  const act = (label, run, style = "") => button(label, { class: style, on: { click: () => (run(), changed(group)) } });
  element.querySelector(".group-head").replaceChildren(
    el("span", { class: "state" }, decided ? (moving.length ? `moves ${size}` : "keeps all") : moving.length ? `undecided; suggested: move ${size}` : "undecided; nothing is suggested"),
    el("span", { class: "gap" }),
    ...(suggested(group).length ? [act("Move suggested", () => choices.accept(group))] : []),
    act("Keep all", () => choices.keepAll(group)),
    ...(decided ? [act("Undo choice", () => choices.undecide(group), "quiet")] : []));
}

function drawTile(tile, file, isKeeper, moves, decided) {
  const moving = moves.has(file.file);
  const badge = tile.querySelector(".badge");
  const switcher = tile.querySelector(".switch");
  tile.classList.toggle("moving", moving && decided);
  badge.className = moving ? "badge perhaps" : "badge same";
  badge.textContent = moving ? (decided ? "moves" : "could move") : isKeeper ? "keep" : "stays";
  switcher.textContent = moving ? "Keep" : "Move";
  switcher.setAttribute("aria-label", `${moving ? "Keep" : "Move"} ${clean(baseName(file.file))}`);
}

function refreshAll() {
  for (const group of page.groups) refresh(group);
  tell();
}

function tell() {
  const { groups, files, bytes } = choices.totals();
  totals.textContent = groups ? `${groups.toLocaleString("en")} of ${count(page.groups.length, "group")} decided: ${count(files, "file")}, ${megabytes(bytes)} to move` : "Nothing is decided yet; this page moves nothing.";
  save.disabled = files === 0;
}

function changed(group) {
  const focused = document.activeElement;
  refresh(group);
  if (!focused?.isConnected) elementOf(group).focus();
  tell();
}

function toggle(group, file) {
  const reason = choices.toggle(group, file);
  if (reason) notify(reason.charAt(0).toUpperCase() + reason.slice(1));
  changed(group);
}

function onKey(event) {
  if (isTyping(event) || event.ctrlKey || event.metaKey || event.altKey) return;
  const here = event.target.closest?.(".dup-group");
  if (event.key === "ArrowDown" || event.key === "ArrowUp") {
    const next = here ? (event.key === "ArrowDown" ? here.nextElementSibling : here.previousElementSibling) : list.firstElementChild;
    if (!next) return;
    next.focus();
    next.scrollIntoView({ block: "nearest" });
  } else if (!here || (event.key === "Enter" && event.target !== here)) return;
  else if (!onGroup(page.groups[Number(here.dataset.group)], here, event.key.toLowerCase())) return;
  event.preventDefault();
}

/** A key on a group; whether it means something. */
function onGroup(group, element, key) {
  const file = /^\d$/.test(key) && filesOf(group)[Number(key)];
  if (file) return toggle(group, file), true;
  if (key === "enter") choices.accept(group);
  else if (key === "k") choices.keepAll(group);
  else if (key === "u") choices.undecide(group);
  else return false;
  changed(group);
  if (key !== "u") element.nextElementSibling?.focus();
  return true;
}

/** The file of choices, and what to do with it. */
function saveChoices() {
  const name = "seenit-choices.json";
  const url = URL.createObjectURL(new Blob([JSON.stringify(written(), null, 1)], { type: "application/json" }));
  el("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
  const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;
  const command = `seenit duplicates ${quoted(page.index)} --apply ${name}`;
  document.querySelector(".next")?.remove();
  bar.prepend(el("div", { class: "next", role: "status" },
    el("p", {}, `${name} is in the browser's downloads. To see what would be moved, run there; with --yes it is moved:`),
    el("code", {}, clean(command))));
}

function written() {
  const plain = ({ file, id, bytes }) => ({ file, id, bytes });
  const groups = page.groups.filter((group) => choices.decided(group)).map((group) => {
    const moves = choices.moves(group);
    const [move, keep] = [true, false].map((moving) => filesOf(group).filter((file) => moves.has(file.file) === moving).map(plain));
    return { keep, move };
  });
  return { schema: "seenit.choices/1", index: page.index, move_to: target.value.trim() || null, groups: groups.filter((group) => group.move.length) };
}

start();
