// What every page has: choices that submit themselves, notices, the count of waiting images, and live events.

const token = document.querySelector("meta[name=csrf]");

export function notice(text, kind = "") {
  const line = document.createElement("p");
  line.textContent = text;
  line.className = kind;
  document.getElementById("notices").append(line);
  setTimeout(() => line.remove(), kind === "error" ? 12000 : 5000);
}

// fetch that tells what went wrong in the server's own sentence. Where somebody has logged in on another page of this
// browser since, it asks once more with today's token.
export async function ask(address, options = {}) {
  const used = token.content;
  try {
    return await asked(address, options);
  } catch (cause) {
    if (cause.status !== 403) throw cause;
    await renew().catch(() => {});
    if (token.content === used) throw cause;
    return asked(address, options);
  }
}

async function asked(address, options) {
  const headers = { "X-CSRF-Token": token.content, Accept: "application/json", ...options.headers };
  let answer;
  try {
    answer = await fetch(address, { ...options, headers, credentials: "same-origin" });
  } catch {
    throw new Error("The server cannot be reached. Is it still running?");
  }
  if (answer.ok) return answer;
  let message = `The server answered ${answer.status}.`;
  try { message = (await answer.json()).error.message; } catch { /* no JSON: a proxy's page */ }
  throw Object.assign(new Error(message), { status: answer.status });
}

// Takes today's token, where there is one.
async function renew() {
  const html = await (await asked(location.href, { headers: { Accept: "text/html" } })).text();
  const fresh = new DOMParser().parseFromString(html, "text/html").querySelector("meta[name=csrf]");
  if (!fresh || fresh.content === token.content) return; // the page of the login has none
  token.content = fresh.content;
  source?.close(); // it was refused when nobody was logged in
  source = null;
  for (const [kind, call] of calls.splice(0)) when(kind, call, fresh.ownerDocument);
}

// A number that no other request has, also where crypto.randomUUID is missing (http from another machine).
export function unique() {
  return [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

// Sends a form as the browser would, and goes where the answer leads. Where the server is away, or refuses, the page stays
// with all that is in it, and the error is thrown, in words.
export async function send(form, submitter = null) {
  const body = new URLSearchParams(new FormData(form, submitter));
  try {
    location.href = (await (await ask(form.getAttribute("action"), { method: "POST", body })).json()).next;
  } catch (cause) {
    if (cause.status !== 401) throw cause;
    throw Object.assign(new Error("You are logged out. Log in on another page, then do this again: nothing here is lost."), { status: 401 });
  }
}

// One connection for the page, from the entry of the log that the page knows; `when(kind, f)` calls f(ref) for each new
// verdict, correction, promotion or detector.
let source = null;
const calls = [];
export function when(kind, call, known = document) {
  calls.push([kind, call]);
  source ??= new EventSource(`/events?after=${known.querySelector("meta[name=head]").content}`);
  source.addEventListener(kind, (event) => call(JSON.parse(event.data).ref));
}

// The count of waiting images, in the header of every page: asked for once after a burst of events.
const count = document.querySelector("[data-waiting]");
if (count?.dataset.waiting) {
  let asked = 0;
  const tell = () => {
    asked ||= setTimeout(async () => {
      asked = 0;
      try {
        const answer = await ask(`/review/waiting?product=${encodeURIComponent(count.dataset.waiting)}`);
        const { waiting } = await answer.json();
        count.textContent = waiting;
        count.hidden = !waiting;
      } catch { /* the next event asks again */ }
    }, 400);
  };
  when("correction", tell);
  when("verdict", tell);
}

// By mouse or finger a choice is meant. By keyboard each arrow key changes it on the way: then Enter, or a button that
// appears, says when.
for (const select of document.querySelectorAll("select[data-submits]")) {
  let button = null;
  let keyed = false;
  select.addEventListener("pointerdown", () => { keyed = false; });
  select.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && button) { event.preventDefault(); select.form.requestSubmit(); }
    keyed = true;
  });
  select.addEventListener("change", () => {
    if (!keyed) return select.form.requestSubmit();
    if (button) return;
    button = Object.assign(document.createElement("button"), { textContent: "Show" });
    select.after(button);
  });
}
for (const element of document.querySelectorAll("[data-scripted]")) element.hidden = false;

// A file that is dropped beside the place for it does not take the page away.
for (const kind of ["dragover", "drop"]) {
  addEventListener(kind, (event) => {
    if (!event.dataTransfer?.types.includes("Files") || event.defaultPrevented) return;
    event.preventDefault();
    if (kind === "drop" && !document.getElementById("drop")) notice("Images are dropped on the page Inspect.");
  });
}

// Keys move between pages: g then i, r, d, h.
let waits = false;
addEventListener("keydown", (event) => {
  if (event.target.closest("input, select, textarea") || event.ctrlKey || event.metaKey || event.altKey) return;
  const places = { i: "/", r: "/review", d: "/detectors", h: "/history" };
  if (waits && places[event.key]) location.href = places[event.key];
  waits = event.key === "g";
});
