// REST, as the page uses it. A failure is a Problem with the service's own words.

const ROOT = new URL("../", location.href.split("#")[0]);
const KEY = "shoal.key";

export class Problem extends Error {
  constructor(status, body) {
    super(body.detail ?? `HTTP ${status}`);
    Object.assign(this, { status, title: body.title, detail: body.detail, type: body.type, requestId: body.request_id });
  }
}

let asking = null;

/** JSON of `path`; `body`: what to send as JSON. Options: method, signal. Asks for a key where one is needed. */
export async function call(path, { body, method, signal } = {}) {
  const headers = { Accept: "application/json" };
  const key = sessionStorage.getItem(KEY);
  if (key) headers.Authorization = `Bearer ${key}`;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(new URL(path.replace(/^\//, ""), ROOT), {
      method: method ?? (body === undefined ? "GET" : "POST"),
      headers, signal, body: body === undefined ? undefined : JSON.stringify(body),
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem(0, { title: "Shoal does not answer", detail: "Is it running? This page tries again by itself where it updates." });
  }
  if (response.status === 401) {
    const told = await response.json().catch(() => ({}));
    await (asking ??= askForKey(told.detail).finally(() => { asking = null; }));
    return call(path, { body, method, signal });
  }
  const told = await response.json().catch(() => ({ detail: `HTTP ${response.status}` }));
  if (!response.ok) throw new Problem(response.status, told);
  return told;
}

/** Gives the file at `path` to the browser to keep. With a key it is fetched here, since a link carries none; the service
 * may then lead to another host, which this page may not read: that is told. */
export async function keep(path, name) {
  const key = sessionStorage.getItem(KEY), link = document.createElement("a");
  link.download = name;
  link.href = address(path);
  if (key) {
    const headers = { Authorization: `Bearer ${key}` };
    const response = await fetch(address(path), { headers, redirect: "manual" });
    if (response.type === "opaqueredirect") {
      throw new Problem(0, { title: "The file lies in a bucket", detail: `With a key the page can't follow there. Use: curl -L -O -J -H "Authorization: Bearer $SHOAL_API_KEY" "${address(path)}"` });
    }
    if (!response.ok) throw new Problem(response.status, await response.json().catch(() => ({ detail: `HTTP ${response.status}` })));
    link.href = URL.createObjectURL(await response.blob());
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  }
  link.click();
}

/** The address of `path` for a link that the browser follows by itself. */
export const address = (path) => new URL(path.replace(/^\//, ""), ROOT).href;

function askForKey(why) {
  const dialog = document.getElementById("sign-in"), field = document.getElementById("key");
  document.getElementById("sign-in-why").textContent = why ?? "";
  field.value = "";
  dialog.showModal();
  field.focus();
  return new Promise((done) => dialog.addEventListener("close", () => {
    if (field.value.trim()) sessionStorage.setItem(KEY, field.value.trim());
    field.value = "";
    done();
  }, { once: true }));
}
