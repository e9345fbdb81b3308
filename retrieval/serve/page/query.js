/**
 * What is asked: images, what is liked and not, a box, filters and options; and the same as parameters of the address.
 *
 * A query is a frozen object. Images are named by content id, an upload as well as an indexed image, so that an address
 * holds the whole query. Uploads themselves are kept by `uploads.js`.
 */

export const DEFAULT_OPTIONS = Object.freeze({ top: 20, exact: false, rerank: true, include_self: false, expand: 0, like_kind: false });
export const NO_FILTERS = Object.freeze({ under: [], after: "", before: "", camera: "", near: null, tags: [] });

/** The query with some parts replaced. */
export function changed(query, parts) {
  return Object.freeze({ ...query, ...parts });
}

/** Another image is asked: its box, likes and views are gone, filters and options stay. */
export function withImage(query, id) {
  return changed(query, { images: [id], like: [], not: [], region: null });
}

/** `id` in the list, or out of it where it was in; out of the other list in either case. */
export function judged(query, id, list) {
  const other = list === "like" ? "not" : "like";
  const without = (ids) => ids.filter((one) => one !== id);
  const now = query[list].includes(id) ? without(query[list]) : [...query[list], id];
  return changed(query, { [list]: now, [other]: without(query[other]) });
}

export function toParams(query) {
  const params = new URLSearchParams();
  const { filters, options } = query;
  for (const id of query.images) params.append("image", id);
  for (const id of query.like) params.append("like", id);
  for (const id of query.not) params.append("not", id);
  if (query.region) params.set("region", query.region.map(short).join(","));
  for (const folder of filters.under) params.append("under", folder);
  for (const name of ["after", "before", "camera"]) if (filters[name]) params.set(name, filters[name]);
  if (filters.near) params.set("near", filters.near.join(","));
  for (const tag of filters.tags) params.append("tag", tag);
  for (const [name, usual] of Object.entries(DEFAULT_OPTIONS)) {
    if (options[name] !== usual) params.set(name, String(Number(options[name])));
  }
  return params;
}

/** The query of an address; what makes no sense in it is left out. */
export function fromParams(params) {
  const filters = {
    under: params.getAll("under"),
    after: params.get("after") ?? "",
    before: params.get("before") ?? "",
    camera: params.get("camera") ?? "",
    near: numbers(params.get("near"), 3),
    tags: params.getAll("tag"),
  };
  const options = {};
  for (const [name, usual] of Object.entries(DEFAULT_OPTIONS)) {
    const given = params.get(name);
    const value = given === null || !/^\d{1,4}$/.test(given) ? Number(usual) : Number(given);
    options[name] = typeof usual === "boolean" ? value !== 0 : value;
  }
  return Object.freeze({
    images: params.getAll("image"),
    like: params.getAll("like"),
    not: params.getAll("not"),
    region: numbers(params.get("region"), 4),
    filters: Object.freeze(filters),
    options: Object.freeze(options),
  });
}

/** Filters as the API takes them: nothing that is empty. */
export function filtersForApi(filters) {
  const given = Object.entries(filters).filter(([, value]) => (Array.isArray(value) ? value.length : value));
  return Object.fromEntries(given);
}

/** Filters as lines for the reader. */
export function filtersInWords(filters) {
  const { under, after, before, camera, near, tags } = filters;
  return [
    under.length && `in ${under.join(" or ")}`,
    after && `from ${after}`,
    before && `before ${before}`,
    camera && `camera ${camera}`,
    near && `within ${near[2]} km of ${near[0]}, ${near[1]}`,
    tags.length && tags.map((tag) => `#${tag}`).join(" "),
  ].filter(Boolean);
}

function numbers(text, length) {
  const values = (text ?? "").split(",").map(Number);
  return text && values.length === length && values.every(Number.isFinite) ? values : null;
}

function short(value) {
  return String(Math.round(value * 1e4) / 1e4);
}
