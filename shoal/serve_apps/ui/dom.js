// Elements from data. Everything that comes from outside becomes text here, never markup.

const SVG = "http://www.w3.org/2000/svg";

/** h("a.link", {href, onclick, dataset…}, "text", child, [children]): an element; null and false children are left out. */
export function h(selector, attributes, ...children) {
  const [tag, ...classes] = selector.split(".");
  return fill(document.createElement(tag), classes, attributes, children);
}

export function svg(selector, attributes, ...children) {
  const [tag, ...classes] = selector.split(".");
  return fill(document.createElementNS(SVG, tag), classes, attributes, children);
}

function fill(element, classes, attributes, children) {
  if (classes.length) element.setAttribute("class", classes.join(" "));
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "value" || name === "checked" || name === "selected") element[name] = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat(3).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

export function replace(element, ...children) {
  element.replaceChildren(...children.flat(3).filter((child) => child !== null && child !== undefined && child !== false));
}

/** Says `text` to a screen reader. */
export function say(text) {
  document.getElementById("said").textContent = text;
}

/** Text with [start, end) spans (in characters, as Python counts them) marked. */
export function marked(text, spans) {
  const characters = Array.from(text), parts = [];
  let at = 0;
  for (const [start, end] of spans ?? []) {
    if (start < at || end > characters.length) continue;
    parts.push(characters.slice(at, start).join(""), h("mark", null, characters.slice(start, end).join("")));
    at = end;
  }
  parts.push(characters.slice(at).join(""));
  return parts;
}

/** A table with a caption. `columns`: [[title, cell(row), is_number?]]. Scrolls sideways by itself on a narrow screen. */
export function table(caption, columns, rows, empty) {
  if (!rows.length) return h("p.note", null, empty ?? "Nothing.");
  return h("div.scroll", { tabindex: "0", role: "region", "aria-label": `${caption}: table` },
    h("table", null,
      h("caption.visually-hidden", null, caption),
      h("thead", null, h("tr", null, columns.map(([title, , number]) => h(number ? "th.number" : "th", { scope: "col" }, title)))),
      h("tbody", null, rows.map((row) => h("tr", null, columns.map(([, cell, number]) => h(number ? "td.number" : "td", null, cell(row) ?? "–")))))));
}

export function details(title, ...children) {
  return h("details", null, h("summary", null, title), children);
}

/** A problem as the service told it, with its advice. */
export function trouble(error) {
  return h("div.trouble", { role: "alert" },
    h("strong", null, error.title ?? "That did not work"), " ", error.detail ?? String(error.message ?? error),
    error.requestId ? h("span.note", null, ` (request ${error.requestId})`) : null);
}
