/** Starts the page: access, the views, what the header shows. */

import * as api from "./api.js";
import { button, clean, count, el, setRoots } from "./dom.js";
import { duplicatesView } from "./duplicates.js";
import { libraryView } from "./library.js";
import { startRouter } from "./router.js";
import { searchView } from "./search.js";
import { events, watchTasks } from "./tasks.js";
import { whyView } from "./why.js";

const main = document.getElementById("main");

async function start() {
  try {
    await takeToken();
    const { authorized } = await api.health();
    if (!authorized) return askForToken();
    await open();
  } catch (error) {
    main.replaceChildren(el("div", { class: "failure", role: "alert" },
      el("h1", {}, "seenit cannot be reached"), el("p", {}, clean(error.message)),
      button("Try again", { on: { click: () => location.reload() } })));
  }
}

/** A token that came with the address is exchanged for a cookie and leaves the address. */
async function takeToken() {
  const token = new URLSearchParams(location.hash.slice(1)).get("token");
  if (!token) return;
  history.replaceState({}, "", location.pathname + location.search);
  await api.openSession(token).catch(() => {}); // a wrong one is asked for by the form
}

function askForToken() {
  const field = el("input", { id: "token", type: "password", autocomplete: "current-password", required: true });
  const failure = el("p", { class: "form-error", role: "alert" });
  const submit = async (event) => {
    event.preventDefault();
    try {
      await api.openSession(field.value);
      main.replaceChildren();
      await open();
    } catch (error) {
      failure.textContent = clean(error.message);
      field.select();
    }
  };
  main.replaceChildren(el("form", { class: "token", on: { submit } },
    el("h1", {}, "This server asks for its token"),
    el("label", { for: "token" }, "Token"), field, failure,
    el("button", { type: "submit", class: "primary" }, "Continue")));
  field.focus();
}

async function open() {
  const info = await api.info();
  const page = { info, readOnly: info.read_only };
  setRoots(info.folders);
  showFacts(info.images);
  events.addEventListener("index", async ({ detail }) => {
    showFacts(detail.images);
    page.info = await api.info();
    setRoots(page.info.folders);
  });
  watchTasks(document.getElementById("task"));
  startRouter({
    "/": searchView(page), "/why": whyView(page), "/library": libraryView(page), "/duplicates": duplicatesView(page),
  }, main);
}

function showFacts(images) {
  document.getElementById("index-facts").textContent = count(images, "image");
}

start();
