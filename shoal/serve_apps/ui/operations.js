// Operations: the flow as it is now, asked again every two seconds (as often as the supervisor writes it).

import { call } from "./api.js";
import { details, h, replace, say, svg, table, trouble } from "./dom.js";
import { bytes, count, money, number, share, span, when } from "./figures.js";

const EVERY_MS = 2000;
const SLOW_EVERY_MS = 15000; // what changes slowly: index and spend
const LETTERS_EVERY_MS = 60000; // their log is read from its start each time
const POINTS = 150; // five minutes of throughput

export async function showOperations(place, _asked, { signal }) {
  const head = h("section", { "aria-label": "Health" }), flow = h("section", { "aria-label": "Flow" }), slow = h("div", null);
  replace(place, h("h1", null, "Operations"), head, flow, slow);
  const series = { at: [], rate: [], lag: [] };
  poll(EVERY_MS, signal, async () => {
    let status;
    try {
      status = await call("api/v1/ingest", { signal });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      replace(head, trouble(error));
      return;
    }
    remember(series, status);
    keepOpen(head, () => replace(head, health(status)));
    keepOpen(flow, () => replace(flow, flowOf(status, series)));
  });
  const parts = [[SLOW_EVERY_MS, indexOf, h("section", { "aria-label": "Index" })], [SLOW_EVERY_MS, spendOf, h("section", { "aria-label": "Spend" })], [LETTERS_EVERY_MS, deadOf, h("section", { "aria-label": "Dead letters" })]];
  replace(slow, parts.map(([, , part]) => part));
  for (const [everyMs, make, part] of parts) {
    poll(everyMs, signal, async () => {
      const shown = await make(signal);
      if (!part.contains(document.activeElement) || document.activeElement === document.body) keepOpen(part, () => replace(part, shown));
    });
  }
}

/** Calls `ask` now and every `every_ms` until `signal`; not while nobody looks at the page. */
async function poll(everyMs, signal, ask) {
  while (!signal.aborted) {
    try {
      if (!document.hidden) await ask();
    } catch (error) {
      if (error.name === "AbortError") return;
      console.error(error);
    }
    await new Promise((done) => setTimeout(done, everyMs));
  }
}

/** Draws anew, and what was unfolded or scrolled stays so. */
function keepOpen(part, draw) {
  const open = new Set([...part.querySelectorAll("details[open] > summary")].map((summary) => summary.textContent));
  draw();
  for (const summary of part.querySelectorAll("details > summary")) if (open.has(summary.textContent)) summary.parentElement.open = true;
}

function remember(series, status) {
  const totals = status.ingest?.totals;
  series.at.push(Date.now());
  series.rate.push(totals?.rates?.ended_per_min ?? null);
  series.lag.push(totals?.lag_records ?? null);
  for (const values of Object.values(series)) if (values.length > POINTS) values.shift();
}

function health(status) {
  return [
    h("p.health", { "data-health": status.health }, h("strong", null, status.health),
      ` · status of ${span(status.age_s)} ago · model ${status.ingest?.model ?? "–"} · broker ${status.ingest?.broker ?? "–"}`),
    status.reasons.map((reason) => h("div.trouble", null, h("strong", null, reason.what), `: ${reason.why} `, h("em", null, reason.do ?? ""))),
    (status.warnings ?? []).map((warning) => h("p.warning", null, warning)),
  ];
}

function flowOf(status, series) {
  const ingest = status.ingest ?? {}, totals = ingest.totals ?? {}, tables = status.tables;
  const actors = Object.entries(ingest.actors ?? {});
  return [
    h("h2", null, "Flow"),
    h("dl.tiles", null,
      tile("Documents", count(tables?.documents), tables ? `${count(tables.chunks)} chunks` : "no tables yet"),
      tile("A minute", number(totals.rates?.ended_per_min), chart(series.rate, "messages done a minute")),
      tile("Waiting", count(totals.lag_records), chart(series.lag, "messages waiting")),
      tile("Oldest waits", span(totals.lag_s), totals.oldest_item_waits_for ? `for ${totals.oldest_item_waits_for}` : ""),
      tile("In work", count(totals.in_flight_items), `${bytes(totals.held_bytes)} of ${bytes(totals.held_bytes_max)}`),
      tile("Last commit", ingest.last_commit_age_s === undefined || ingest.last_commit_age_s === null ? "–" : `${span(ingest.last_commit_age_s)} ago`, `epoch ${ingest.writer_epoch ?? "–"}`)),
    h("h3", null, "Partitions"),
    table("Lag by partition", [
      ["Partition", (row) => `${row.topic} ${row.partition}`],
      ["Waiting", (row) => count(row.lag_records), true],
      ["Oldest", (row) => span(row.lag_s), true],
      ["In work", (row) => count(row.in_flight), true],
      ["Committed", (row) => count(row.committed_offset), true],
      ["Reader", (row) => row.owner ?? h("span.tag.bad", null, `nobody for ${span(row.unowned_s)}`)],
      ["Paused", (row) => row.paused_because ?? ""],
    ], ingest.partitions ?? [], "No partition is read yet."),
    h("h3", null, "Stages"),
    table("Actors", [
      ["Actor", ([name]) => name],
      ["State", ([, actor]) => h("span", { class: actor.state === "running" ? "tag good" : "tag bad" }, actor.state)],
      ["Up", ([, actor]) => span(actor.uptime_s), true],
      ["Restarts", ([, actor]) => count(actor.restarts), true],
      ["Silent", ([, actor]) => span(actor.silent_s), true],
      ["Last ended", ([, actor]) => actor.reason ?? ""],
    ], actors, "No actor runs."),
    embedder(ingest.embedder),
    feeds(status.feeds),
  ];
}

function tile(name, value, more) {
  return h("div.tile", null, h("dt", null, name), h("dd", null, h("span.value", null, value), h("span.note", null, more)));
}

/** The last minutes as a line; where nothing was told there is a gap. */
function chart(values, label) {
  const known = values.filter((value) => value !== null);
  if (known.length < 2) return "";
  const top = Math.max(...known, 1), step = 100 / (POINTS - 1), first = POINTS - values.length;
  let path = "", pen = "M";
  values.forEach((value, at) => {
    if (value === null) { pen = "M"; return; }
    path += `${pen}${((first + at) * step).toFixed(2)} ${(23 - 22 * (value / top)).toFixed(2)}`;
    pen = "L";
  });
  return svg("svg.chart", { viewBox: "0 0 100 24", preserveAspectRatio: "none", role: "img", "aria-label": `${label}, at most ${number(top)} in the last minutes` },
    svg("path", { d: path }));
}

function embedder(state) {
  if (!state) return null;
  const spend = state.spend, saved = state.texts ? (state.cache_hits + (state.reused ?? 0)) / state.texts : null;
  return [h("h3", null, "Embedder"),
    h("dl.tiles", null,
      tile("Texts", count(state.texts), `${share(saved)} cost nothing`),
      tile("Requests", count(state.requests), `${count(state.failed_requests)} failed`),
      tile("Queued", count(state.queued_texts), Object.entries(state.queued_by_lane ?? {}).map(([lane, many]) => `${lane} ${count(many)}`).join(", ")),
      tile("Under way", `${count(state.running)} of ${count(state.running_max)}`, state.unwell_s ? `unwell for ${span(state.unwell_s)}` : "well"),
      spend ? tile("Today", money(spend.spent_day_usd), spend.limit_day_usd ? `of ${money(spend.limit_day_usd)}` : spend.message) : null,
      spend ? tile("This month", money(spend.spent_month_usd), spend.limit_month_usd ? `of ${money(spend.limit_month_usd)}` : spend.level) : null),
    state.last_error ? h("p.warning", null, state.last_error) : null];
}

function feeds(state) {
  if (!state) return h("p.note", null, "Feeds are being looked at.");
  const quiet = state.listed.filter((feed) => feed.overdue);
  const columns = [
    ["Dataset", (feed) => feed.dataset], ["Source", (feed) => feed.data_source],
    ["Silent", (feed) => span(feed.silent_s), true], ["Comes every", (feed) => span(feed.expected_every_s), true],
    ["Last seen", (feed) => when(feed.last_seen_at)],
  ];
  return [h("h3", null, "Feeds"),
    h("p", null, `${count(state.total)} feeds; ${count(state.overdue)} gone quiet; of ${count(state.unknown)} the rhythm is not known yet.`),
    quiet.length ? table("Feeds gone quiet", columns, quiet) : null,
    details("All feeds that are listed", table("Feeds", columns, state.listed, "No feed yet."))];
}

async function indexOf(signal) {
  const title = h("h2", null, "Index");
  try {
    const [index, status] = await Promise.all([call("api/v1/collections/scraper/index", { signal }), call("api/v1/ingest", { signal })]);
    const recall = status.ingest?.recall;
    return [title,
      h("p", null, h("span", { class: index.ok ? "tag good" : "tag bad" }, index.ok ? "in order" : "needs a look"),
        recall ? ` Recall@10 ${share(recall.recall)}${recall.alarm ? `: ${recall.alarm}` : ""}` : " Recall is measured once there is an index by vectors."),
      table("Indexes", [
        ["Index", (row) => `${row.table} ${row.column}`], ["Kind", (row) => row.kind],
        ["Covered", (row) => (row.rows ? share(row.indexed / row.rows) : "–"), true],
        ["Rows", (row) => count(row.rows), true], ["Not yet", (row) => count(row.unindexed), true], ["Size", (row) => bytes(row.size_bytes), true],
        ["Next", (row) => `${row.due}${row.why ? `: ${row.why}` : ""}`],
        ["Verified", (row) => (row.verified ? `${row.verified.outcome}, ${when(row.verified.at)}` : "–")],
      ], index.indexes ?? [], "No index yet: searches are exact."),
      (index.warnings ?? []).map((warning) => h("p.warning", null, warning))];
  } catch (error) {
    if (error.name === "AbortError") throw error;
    return [title, trouble(error)];
  }
}

async function spendOf(signal) {
  const title = h("h2", null, "Spend");
  try {
    const cost = await call("api/v1/cost?by=day,model", { signal });
    return [title,
      h("p", null, `${money(cost.total?.usd)} for ${count(cost.total?.tokens)} tokens from ${cost.since} to ${cost.until}.`),
      table("Spend by day and model", [
        ["Day", (row) => row.day], ["Model", (row) => row.model], ["Money", (row) => money(row.usd), true],
        ["Tokens", (row) => count(row.tokens), true], ["Requests", (row) => count(row.requests), true], ["Failed", (row) => count(row.failed_requests), true],
      ], cost.rows ?? [], "Nothing was spent: models that run here cost nothing."),
      (cost.warnings ?? []).map((warning) => h("p.warning", null, warning))];
  } catch (error) {
    if (error.name === "AbortError") throw error;
    return [title, trouble(error)];
  }
}

async function deadOf(signal) {
  const title = h("h2", null, "Dead letters");
  try {
    const dead = await call("api/v1/dead-letters?limit=50", { signal });
    return [title, ...letters(dead)];
  } catch (error) {
    if (error.name === "AbortError") throw error;
    return [title, trouble(error)];
  }
}

function letters(dead) {
  const answer = h("p", null);
  return [answer,
    h("p", null, dead.matching ? `${count(dead.matching)} are open. Mend the cause, then replay.` : "None: everything that was announced is indexed or on its way."),
    dead.matching ? table("Dead letters", [
      ["Failed", (row) => when(row.failed_at)], ["Reason", (row) => row.reason], ["Document", (row) => row.key],
      ["Why", (row) => row.message], ["Replays", (row) => count(row.replays), true],
      ["Action", (row) => h("button", { type: "button", "aria-label": `Replay ${row.id}`, onclick: (event) => replay(event.target, row, answer) }, "Replay")],
    ], dead.dead_letters) : null];
}

async function replay(button, row, answer) {
  button.disabled = true;
  try {
    const told = await call("api/v1/dead-letters/replay", { body: { ids: [row.id] } });
    const left = told.replayed_too_often ? "It was replayed too often already: see docs/dead-letters.md." : "It can't be replayed: see shoal dlq show.";
    answer.textContent = told.replayed ? "Announced again; its state here follows." : left;
    say(answer.textContent);
  } catch (error) {
    button.disabled = false;
    replace(answer, trouble(error));
  }
}
