/** Which view is shown, and its parameters: both stand in the address bar, so that every state can be bookmarked. */

let routes = new Map();
let outlet = null;
let current = new AbortController();

/**
 * Show the view of the address, and follow links and the browser's buttons from now on.
 * @param {Object<string, function(HTMLElement, URLSearchParams, AbortSignal): void>} views  by path; a view fills the
 *   element, and ends what it began when the signal aborts
 */
export function startRouter(views, element) {
  routes = new Map(Object.entries(views));
  outlet = element;
  addEventListener("popstate", () => show());
  document.addEventListener("click", followLink);
  show();
}

/** Go to another address of the page. With `replace` the present one is no step to come back to. */
export function go(path, params = new URLSearchParams(), { replace = false } = {}) {
  setAddress(path, params, replace);
  show();
  if (!replace) scrollTo(0, 0);
}

/** Change the address without showing a view anew. */
export function setAddress(path, params, replace = true) {
  const query = params.toString();
  history[replace ? "replaceState" : "pushState"]({}, "", query ? `${path}?${query}` : path);
}

function show() {
  current.abort();
  current = new AbortController();
  const path = routes.has(location.pathname) ? location.pathname : "/";
  for (const link of document.querySelectorAll("header nav a")) {
    if (link.pathname === path) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  outlet.replaceChildren();
  outlet.className = path === "/" ? "view-search" : `view-${path.slice(1)}`;
  routes.get(path)(outlet, new URLSearchParams(location.search), current.signal);
}

function followLink(event) {
  const link = event.target.closest?.("a[href]");
  if (!link || event.defaultPrevented || event.button || event.metaKey || event.ctrlKey || event.shiftKey) return;
  if (link.target || link.origin !== location.origin || !routes.has(link.pathname) || link.hash) return;
  event.preventDefault();
  go(link.pathname, new URLSearchParams(link.search));
}
