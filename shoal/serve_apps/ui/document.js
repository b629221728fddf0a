// One document: what it says, its schema, APIs like it, and where it came from.

import { call, keep } from "./api.js";
import { details, h, replace, table, trouble } from "./dom.js";
import { bytes, count, number, when } from "./figures.js";

export async function showDocument(place, asked, { rest: [collection, id], signal }) {
  const path = `api/v1/collections/${encodeURIComponent(collection)}/documents/${encodeURIComponent(id)}`;
  const found = await call(path, { signal });
  const about = found.document;
  document.title = `${about.title || about.urn || about.id} · Shoal`;
  const back = asked.get("q") ? `#/search?q=${encodeURIComponent(asked.get("q"))}` : "#/search";
  const text = h("section", { "aria-label": "Text" }), likeness = h("section", { "aria-label": "Similar APIs" });
  replace(place,
    h("p", null, h("a", { href: back }, "‹ Results")),
    h("h1", null, about.title || about.urn || about.id),
    h("p.about", null, [about.data_source, about.dataset, about.data_type, about.file_format].filter(Boolean).map((part) => h("span.tag", null, part)),
      h("time", { datetime: about.collected_at }, when(about.collected_at)),
      h("button", { type: "button", onclick: (event) => download(event.target, `${path}/raw`, about.urn) }, `The file itself (${bytes(about.file_size_bytes)})`)),
    about.validation_status === "error" ? h("p.trouble", null, "This version could not be read: ", (about.warnings ?? []).join("; ")) : null,
    text, schema(found.chunks), likeness, lineage(about, found), everything(about));
  showText(text, path, found, signal);
  await showSimilar(likeness, found.chunks, signal);
}

async function download(button, path, name) {
  try {
    await keep(path, (name ?? "document").split("/").pop());
  } catch (error) {
    button.after(trouble(error));
  }
}

function showText(place, path, found, signal) {
  const body = h("div", null, found.chunks.map(chunk));
  replace(place, h("h2", null, "Text"),
    found.chunks.length ? body : h("p.note", null, "This version has no text."), further(found));

  function further(page) {
    if (page.next_chunk === null) return null;
    const button = h("button", { type: "button", onclick: async () => {
      button.disabled = true;
      try {
        const next = await call(`${path}?first_chunk=${page.next_chunk}`, { signal });
        body.append(...next.chunks.map(chunk));
        button.replaceWith(further(next) ?? "");
      } catch (error) {
        if (error.name !== "AbortError") button.replaceWith(trouble(error));
      }
    } }, "More text");
    return button;
  }
}

const chunk = (row) => h("pre", { tabindex: "0", "aria-label": row.heading ?? `Part ${row.chunk_index + 1}` }, row.text ?? row.content_summary ?? "");

function schema(chunks) {
  const fields = parsed(chunks.find((row) => row.content_schema)?.content_schema)?.fields;
  if (!fields?.length) return null;
  return h("section", { "aria-label": "Schema" }, h("h2", null, "Schema"),
    table("Fields", [
      ["Field", (field) => h("code", null, field.path ?? field.name ?? "")], ["Type", (field) => field.type],
      ["Unit", (field) => field.unit ?? ""], ["Example", (field) => (field.example === undefined || field.example === null ? "" : String(field.example).slice(0, 80))],
    ], fields.slice(0, 200)),
    fields.length > 200 ? h("p.note", null, `${count(fields.length - 200)} more fields.`) : null);
}

function parsed(text) {
  try { return text ? JSON.parse(text) : null; } catch { return null; }
}

async function showSimilar(place, chunks, signal) {
  const known = chunks.find((row) => row.api_endpoint);
  if (!known) return;
  const fields = (parsed(known.content_schema)?.fields ?? []).slice(0, 50).map((field) => field.path ?? field.name);
  const title = h("h2", null, "Similar APIs");
  replace(place, title, h("p.note", null, "Looking…"));
  try {
    const body = { endpoint: known.api_endpoint, auth_method: known.auth_method, pagination: known.pagination_type, fields };
    const { similar_apis: apis } = await call("api/v1/agents/context/similar-apis?limit=6", { body, signal });
    replace(place, title, table("Similar APIs", [
      ["Source", (api) => api.data_source], ["Endpoint", (api) => h("code", null, api.api_endpoint ?? "–")],
      ["Key", (api) => api.auth_method ?? ""], ["Limit", (api) => api.rate_limit ?? ""], ["Likeness", (api) => number(api.similarity_score), true],
    ], apis.filter((api) => api.api_endpoint !== known.api_endpoint), "No other is known."));
  } catch (error) {
    if (error.name !== "AbortError") replace(place, title, trouble(error));
  }
}

function lineage(about, found) {
  const facts = [
    ["Object", about.s3_path], ["Version", about.version],
    ["Message", about.kafka_topic ? `${about.kafka_topic} ${about.kafka_partition} @ ${about.kafka_offset} (${about.kafka_cluster})` : null],
    ["Published", when(about.published_at)], ["Collected", when(about.collected_at)], ["Indexed", when(about.indexed_at)],
    ["Scraper", about.scraper_name], ["Fetched from", about.source_url], ["sha256", about.sha256_hash], ["Model", about.embedding_model],
    ["Parts", count(about.chunk_count)], ["Copy of", about.near_duplicate_of],
  ].filter(([, value]) => value);
  const versions = found.versions ?? [];
  return h("section", { "aria-label": "Lineage" }, h("h2", null, "Lineage"),
    h("dl.facts", null, facts.map(([name, value]) => [h("dt", null, name), h("dd", null, value)])),
    versions.length > 1 ? [h("h3", null, "Versions"), table("Versions", [
      ["Version", (row) => row.version], ["Collected", (row) => when(row.collected_at)], ["State", (row) => (row.superseded_at ? "superseded" : row.validation_status)],
      ["Size", (row) => bytes(row.file_size_bytes), true], ["sha256", (row) => h("code", null, (row.sha256_hash ?? "").slice(0, 12))],
    ], versions)] : null);
}

const everything = (about) => details("All fields", h("dl.facts", null,
  Object.entries(about).filter(([, value]) => value !== null && value !== "").map(([name, value]) =>
    [h("dt", null, name), h("dd", null, typeof value === "object" ? JSON.stringify(value) : String(value))])));
