// Fixes that were tried: what an agent is told for a scraper and its error.

import { call } from "./api.js";
import { details, h, replace, say, trouble } from "./dom.js";
import { count, when } from "./figures.js";

const FIELDS = [["scraper_name", "Scraper", "nyiso_load_forecast"], ["error_type", "Kind of error", "KeyError"], ["error_message", "Message", "'forecast_mw'"]];

export async function showFixes(place, asked, { signal }) {
  const found = h("section", { "aria-label": "Fixes" });
  replace(place, h("h1", null, "Past fixes"),
    h("p.note", null, "What was tried for a scraper and its error, as coding agents are told."),
    h("form.ask", { onsubmit: (event) => {
      event.preventDefault();
      const next = new URLSearchParams([...new FormData(event.target)].filter(([, value]) => value));
      location.hash = `#/fixes?${next}`;
    } },
    h("div.options", null, FIELDS.map(([name, label, example]) => h("label", null, h("span", null, label),
      h("input", { name, value: asked.get(name) ?? "", placeholder: example, required: name === "scraper_name", maxlength: 2000 }))),
    h("button.main", null, "Look"))), found);
  if (!asked.get("scraper_name")) return;
  try {
    const body = Object.fromEntries(FIELDS.map(([name]) => [name, asked.get(name)]).filter(([, value]) => value));
    const answer = await call("api/v1/agents/context/fix-patterns?limit=20", { body, signal });
    const fixes = answer.fix_patterns.flatMap((pattern) => pattern.fix_history.map((fix) => ({ scraper: pattern.scraper, ...fix })));
    replace(found, (answer.warnings ?? []).map((warning) => h("p.warning", null, warning)),
      fixes.length ? h("ol.hits", null, fixes.map(fixItem)) : h("p.empty", null, "No fix is known for it. Agents report them with the tool report_fix."));
    say(`${fixes.length} fixes`);
  } catch (error) {
    if (error.name !== "AbortError") replace(found, trouble(error));
  }
}

function fixItem(fix) {
  return h("li", null,
    h("h2.fix", null, fix.summary || fix.error_type || "A fix"),
    h("p.about", null,
      h("span.tag", null, fix.scraper), fix.error_type ? h("span.tag", null, fix.error_type) : null,
      fix.outcome ? h("span.tag", { class: fix.outcome === "worked" ? "tag good" : "tag" }, fix.outcome) : null,
      fix.wrong ? h("span.tag.bad", null, "marked wrong") : null,
      fix.count > 1 ? h("span.tag", null, `${count(fix.count)} times`) : null,
      h("time", { datetime: fix.reported_at }, when(fix.reported_at))),
    fix.error_message ? h("p.snippet", null, h("code", null, fix.error_message)) : null,
    fix.diff ? details("The change", h("pre", null, fix.diff)) : null);
}
