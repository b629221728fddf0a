// Search: a question, filters and facets; everything that was asked stands in the address, so that it can be sent on.

import { call } from "./api.js";
import { details, h, marked, replace, say, trouble } from "./dom.js";
import { ago, count, number, when } from "./figures.js";

const COLLECTION = "scraper";
const FACETS = [["data_source", "Source"], ["dataset", "Dataset"], ["data_type", "Type of data"], ["file_format", "Format"], ["validation_status", "Status"]];
const MODES = [["hybrid", "meaning and words"], ["vector", "meaning"], ["keyword", "words"]];
const PAGE = 20;

export async function showSearch(place, asked, { signal, focused }) {
  const results = h("section.results", { "aria-label": "Results", "aria-busy": "true" }, h("h1", null, title(asked)));
  const facets = h("div.facets", null);
  replace(place, form(asked), h("div.columns", null, h("aside", { "aria-label": "Filters" }, facets), results));
  if (!asked.get("q") && !focused && matchMedia("(min-width: 50em)").matches) document.getElementById("query").focus();
  try {
    const page = await call(`api/v1/collections/${COLLECTION}/search`, { body: bodyOf(asked), signal });
    showFacets(facets, page.facets, asked, focused);
    // Who chose a facet by keyboard goes on from there, though all of it was drawn anew.
    if (focused) [...facets.querySelectorAll("[data-key]")].find((each) => each.dataset.key === focused)?.focus();
    replace(results, heading(page, asked), list(page, asked), more(page, asked, signal));
    say(page.count ? `${page.count} results` : "Nothing was found");
  } catch (error) {
    if (error.name === "AbortError") return;
    showFacets(facets, null, asked);
    replace(results, h("h1", null, title(asked)), trouble(error));
  } finally {
    results.setAttribute("aria-busy", "false");
  }
}

/** The body of the general search that the address asks for. */
export function bodyOf(asked, cursor) {
  const filters = FACETS.flatMap(([column]) => {
    const values = asked.getAll(column);
    return values.length ? [{ column, in: values }] : [];
  });
  if (asked.get("from") || asked.get("to")) {
    filters.push({ column: "collected_at", ...(asked.get("from") ? { gte: asked.get("from") } : {}), ...(asked.get("to") ? { lte: asked.get("to") } : {}) });
  }
  return {
    ...(asked.get("q") ? { query: asked.get("q"), mode: asked.get("mode") ?? "hybrid", highlight: true } : {}),
    ...(filters.length ? { filters: { and: filters } } : {}),
    ...(cursor ? { cursor } : { facets: FACETS.map(([column]) => column) }),
    ...(asked.get("explain") ? { explain: true } : {}),
    limit: PAGE,
  };
}

function form(asked) {
  const field = (name, label, input) => h("label", null, h("span", null, label), input);
  return h("form.ask", { role: "search", onsubmit: (event) => { event.preventDefault(); go(event.target, asked); } },
    h("div.question", null,
      h("label.visually-hidden", { for: "query" }, "Question"),
      h("input", { id: "query", name: "q", type: "search", value: asked.get("q") ?? "", maxlength: 4000, autocomplete: "off", placeholder: "hourly load forecast by zone" }),
      h("button.main", null, "Search")),
    h("div.options", null,
      field("mode", "Match", h("select", { name: "mode", onchange: (event) => event.target.form.requestSubmit() },
        MODES.map(([value, label]) => h("option", { value, selected: value === (asked.get("mode") ?? "hybrid") }, label)))),
      field("from", "From", h("input", { name: "from", type: "date", value: asked.get("from") ?? "" })),
      field("to", "To", h("input", { name: "to", type: "date", value: asked.get("to") ?? "" })),
      h("label.check", null, h("input", { name: "explain", type: "checkbox", value: "1", checked: asked.get("explain") === "1" }), " say why"),
      [...asked.keys()].length ? h("a.clear", { href: "#/search" }, "Clear all") : null));
}

function go(form, asked) {
  const next = new URLSearchParams();
  for (const [name, value] of new FormData(form)) {
    if (value && !(name === "mode" && value === "hybrid")) next.append(name, value);
  }
  for (const [column] of FACETS) for (const value of asked.getAll(column)) next.append(column, value);
  navigate(next);
}

function navigate(parameters) {
  const text = parameters.toString(), to = `#/search${text ? `?${text}` : ""}`;
  if (location.hash === to) window.dispatchEvent(new HashChangeEvent("hashchange"));
  else location.hash = to;
}

function showFacets(place, facets, asked, focused) {
  const wide = matchMedia("(min-width: 50em)").matches;
  replace(place, FACETS.map(([column, label]) => {
    const chosen = asked.getAll(column), found = facets?.columns[column];
    const values = [...(found?.values ?? []).map(({ value, count }) => [String(value), count])];
    for (const value of chosen) if (!values.some(([other]) => other === value)) values.unshift([value, null]);
    if (!values.length) return null;
    const box = details(`${label}${chosen.length ? ` (${chosen.length})` : ""}`,
      h("fieldset", null, h("legend.visually-hidden", null, label), values.map(([value, many]) =>
        h("label.value", null,
          h("input", { type: "checkbox", "data-key": `${column} ${value}`, checked: chosen.includes(value), onchange: () => toggle(asked, column, value) }),
          h("span.name", null, value), h("span.count", null, many === null ? "" : count(many))))),
      found?.others ? h("p.note", null, `${count(found.others)} with other values`) : null);
    box.open = wide || chosen.length > 0 || focused?.startsWith(`${column} `);
    return box;
  }), facets && !facets.exact ? h("p.note", null, `Counted over the best ${count(facets.of)}.`) : null);
}

function toggle(asked, column, value) {
  const next = new URLSearchParams(asked), values = asked.getAll(column);
  next.delete(column);
  for (const other of values.includes(value) ? values.filter((each) => each !== value) : [...values, value]) next.append(column, other);
  navigate(next);
}

const title = (asked) => (asked.get("q") ? `“${asked.get("q")}”` : "What came in last");

function heading(page, asked) {
  const fresh = page.freshness ?? {};
  const how = asked.get("q") ? (page.mode === "hybrid" ? "by meaning and words" : page.mode === "vector" ? "by meaning" : "by words") : "newest first";
  return h("div.summary", null,
    h("h1", null, title(asked)),
    h("p.note", null, `${how}, ${number(page.took_ms)} ms; index of `,
      h("time", { datetime: fresh.indexed_through, title: fresh.indexed_through }, fresh.indexed_through ? ago(fresh.indexed_through) : "no time yet"),
      fresh.lag_records ? `; ${count(fresh.lag_records)} messages wait` : ""),
    (page.warnings ?? []).map((warning) => h("p.warning", null, warning)));
}

function list(page, asked) {
  if (!page.results.length) {
    return h("p.empty", null, [...asked.keys()].length
      ? ["Nothing matches. ", h("a", { href: "#/search" }, "Clear the filters"), ", or ask in other words."]
      : "Nothing is indexed yet. What scrapers announce appears here within seconds; Operations shows what is on its way.");
  }
  return h("ol.hits", null, page.results.map((result) => hit(result, asked)));
}

function hit({ document: found, score, chunks, explain }, asked) {
  const best = chunks?.[0], snippet = best?.snippet;
  const text = snippet ? marked(snippet.text, snippet.spans) : [(best?.text ?? found.content_summary ?? "").slice(0, 400)];
  return h("li", null,
    h("a.hit", { href: `#/document/${COLLECTION}/${encodeURIComponent(found.id)}${asked.get("q") ? `?q=${encodeURIComponent(asked.get("q"))}` : ""}` }, found.title || found.urn || found.id),
    h("p.about", null,
      [found.data_source, found.dataset, found.file_format].filter(Boolean).map((part) => h("span.tag", null, part)),
      h("time", { datetime: found.collected_at }, when(found.collected_at)),
      found.validation_status === "error" ? h("span.tag.bad", null, "could not be read") : null,
      score === undefined || score === null ? null : h("span.score", { title: "Score" }, score.toFixed(3))),
    text.some(Boolean) ? h("p.snippet", null, text) : null,
    best?.api_endpoint ? h("p.endpoint", null, h("code", null, best.api_endpoint)) : null,
    explain ? details("Why it is here", h("pre", null, JSON.stringify(explain, null, 2))) : null);
}

function more(page, asked, signal) {
  if (!page.next_cursor) return null;
  const button = h("button", { type: "button", onclick: async () => {
    button.disabled = true;
    try {
      const next = await call(`api/v1/collections/${COLLECTION}/search`, { body: bodyOf(asked, page.next_cursor), signal });
      const shown = document.querySelector("ol.hits"), first = next.results.map((result) => hit(result, asked));
      shown.append(...first);
      button.replaceWith(more(next, asked, signal) ?? "");
      first[0]?.querySelector("a")?.focus();
      say(`${next.count} more results`);
    } catch (error) {
      if (error.name !== "AbortError") button.replaceWith(trouble(error));
    }
  } }, "More");
  return h("p.more", null, button);
}
