// Which view is shown, the keyboard, the colours, and the health that every view shows.

import { call } from "./api.js";
import { h, replace, say, trouble } from "./dom.js";
import { showDocument } from "./document.js";
import { showFixes } from "./fixes.js";
import { showOperations } from "./operations.js";
import { showSearch } from "./search.js";

const VIEWS = { search: showSearch, document: showDocument, operations: showOperations, fixes: showFixes };
const HEALTH_EVERY_MS = 5000;
const main = document.getElementById("main");
let leave = null; // ends what the view before had going
let resultsAt = "#/search";
let shown = null;

function route() {
  const [path, query] = location.hash.replace(/^#\//, "").split("?", 2);
  const [name, ...rest] = path.split("/");
  const view = VIEWS[name] ? name : "search";
  if (view === "search") resultsAt = location.hash || "#/search";
  leave?.abort();
  leave = new AbortController();
  for (const link of document.querySelectorAll("nav a[data-view]")) {
    if (link.dataset.view === view) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.title = `${view[0].toUpperCase()}${view.slice(1)} · Shoal`;
  const place = h("div.view", null), focused = document.activeElement?.dataset?.key;
  replace(main, place);
  if (shown !== null && shown !== view) main.focus();
  shown = view;
  VIEWS[view](place, new URLSearchParams(query), { rest: rest.map(decodeURIComponent), signal: leave.signal, focused })
    .catch((error) => { if (error.name !== "AbortError") place.append(trouble(error)); });
}

window.addEventListener("hashchange", route);

// --- health ---------------------------------------------------------------------------------

async function health() {
  const pill = document.getElementById("health"), text = document.getElementById("health-text");
  if (!document.hidden) {
    let now = "no answer";
    try { now = (await call("api/v1/ingest")).health; } catch { /* shown as such */ }
    if (text.textContent !== now) {
      pill.dataset.health = now;
      text.textContent = now;
      say(`Health: ${now}`);
    }
  }
  setTimeout(health, HEALTH_EVERY_MS);
}

// --- colours --------------------------------------------------------------------------------

const SCHEMES = ["as the system", "light", "dark"];
const themeButton = document.getElementById("theme");

function colour(scheme) {
  if (scheme === SCHEMES[0]) delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = scheme;
  themeButton.setAttribute("aria-label", `Colours: ${scheme}`);
  themeButton.title = `Colours: ${scheme}`;
}

function stored() {
  try { return localStorage.getItem("shoal.theme") ?? SCHEMES[0]; } catch { return SCHEMES[0]; }
}

themeButton.addEventListener("click", () => {
  const next = SCHEMES[(SCHEMES.indexOf(stored()) + 1) % SCHEMES.length];
  try { localStorage.setItem("shoal.theme", next); } catch { /* private window: until it is closed */ }
  colour(next);
  say(`Colours: ${next}`);
});

// --- keyboard -------------------------------------------------------------------------------

const keys = document.getElementById("keys");
document.getElementById("help").addEventListener("click", () => keys.showModal());

function among(step) {
  const links = [...document.querySelectorAll("a.hit")];
  if (!links.length) return;
  const at = links.indexOf(document.activeElement);
  links[Math.min(links.length - 1, Math.max(0, at + step))].focus();
}

const SHORTCUTS = {
  "/": () => {
    if (document.getElementById("query")) document.getElementById("query").select();
    else location.hash = "#/search";
  },
  "?": () => keys.showModal(),
  j: () => among(1),
  k: () => among(-1),
  u: () => { location.hash = resultsAt; },
  s: () => { location.hash = "#/search"; },
  f: () => { location.hash = "#/fixes"; },
  o: () => { location.hash = "#/operations"; },
};

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
  if (event.target.closest("input, select, textarea")) {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  if (SHORTCUTS[event.key]) {
    event.preventDefault();
    SHORTCUTS[event.key]();
  }
});

colour(stored());
route();
health();
