// Numbers and times as people read them.

const NUMBER = new Intl.NumberFormat("en", { maximumFractionDigits: 1 });
const EXACT = new Intl.NumberFormat("en");

export const number = (value) => (value === null || value === undefined ? "–" : NUMBER.format(value));
export const count = (value) => (value === null || value === undefined ? "–" : EXACT.format(value));
export const money = (usd) => (usd === null || usd === undefined ? "–" : `$${usd < 1 ? usd.toFixed(4) : usd.toFixed(2)}`);
export const share = (value) => (value === null || value === undefined ? "–" : `${(100 * value).toFixed(1)} %`);

export function bytes(value) {
  if (value === null || value === undefined) return "–";
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let at = 0;
  while (value >= 1024 && at < units.length - 1) { value /= 1024; at += 1; }
  return `${NUMBER.format(value)} ${units[at]}`;
}

/** 3 s, 4 min, 2.5 h, 3 days. */
export function span(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds < 90) return `${NUMBER.format(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  if (seconds < 172800) return `${NUMBER.format(seconds / 3600)} h`;
  return `${NUMBER.format(seconds / 86400)} days`;
}

/** 2025-01-20 14:30 UTC. */
export function when(time) {
  if (!time) return "–";
  const date = new Date(time);
  return Number.isNaN(date.getTime()) ? String(time) : `${date.toISOString().slice(0, 16).replace("T", " ")} UTC`;
}

export const ago = (time, now = Date.now()) => (time ? `${span(Math.max(0, (now - new Date(time)) / 1000))} ago` : "–");
