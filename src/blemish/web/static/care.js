// The single view of the review: keys, heat and boxes, zoom, drawing, and what others decide meanwhile.
import { ask, send, when } from "./app.js";
import { drawing } from "./draw.js";

const form = document.getElementById("decide");
const sheet = document.getElementById("sheet");
const width = Number(sheet.dataset.width);
const height = Number(sheet.dataset.height);
const byId = (id) => document.getElementById(id);

let unsaved = "draft" in sheet.dataset; // shapes that no decision has saved yet
const draw = drawing(sheet, {
  width, height,
  shapes: JSON.parse(sheet.dataset.shapes),
  changed: (shapes) => {
    form.elements.shapes.value = JSON.stringify(shapes);
    unsaved = true;
    if (byId("replaces")) byId("replaces").hidden = !shapes.length;
  },
  told: (words) => { byId("told").textContent = words; },
});

// Zoom and pan: the part of the image that the sheet shows.
let view = [0, 0, width, height];
function show([x, y, w, h]) {
  const wide = Math.min(Math.max(w, width / 64), width);
  const high = wide * h / w;
  view = [Math.min(Math.max(x, 0), width - wide), Math.min(Math.max(y, 0), height - high), wide, high];
  sheet.setAttribute("viewBox", view.join(" "));
  sheet.classList.toggle("zoomed", wide < width);
  draw.refresh();
}
function zoom(factor, at = [view[0] + view[2] / 2, view[1] + view[3] / 2]) {
  const [x, y, w, h] = view;
  const w2 = Math.min(Math.max(w * factor, width / 64), width);
  const share = w2 / w;
  show([at[0] - (at[0] - x) * share, at[1] - (at[1] - y) * share, w2, h * share]);
}
const where = (event) => {
  const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(sheet.getScreenCTM().inverse());
  return [at.x, at.y];
};
sheet.addEventListener("wheel", (event) => {
  event.preventDefault();
  zoom(event.deltaY > 0 ? 1.25 : 0.8, where(event));
}, { passive: false });
const fingers = new Map();
let pan = null;
let pinch = 0; // distance of two fingers
const apart = () => {
  const [a, b] = [...fingers.values()];
  return Math.hypot(a.clientX - b.clientX, a.clientY - b.clientY);
};
sheet.addEventListener("pointerdown", (event) => {
  if (draw.kind || event.button) return;
  fingers.set(event.pointerId, event);
  if (fingers.size === 2) {
    pinch = apart();
    pan = null;
  } else if (view[2] < width) {
    pan = where(event);
    sheet.setPointerCapture(event.pointerId);
  }
});
sheet.addEventListener("pointermove", (event) => {
  if (fingers.has(event.pointerId)) fingers.set(event.pointerId, event);
  if (fingers.size === 2 && pinch) {
    const now = apart();
    const [a, b] = [...fingers.values()].map(where);
    zoom(pinch / now, [(a[0] + b[0]) / 2, (a[1] + b[1]) / 2]);
    pinch = now;
  } else if (pan) {
    const at = where(event);
    show([view[0] + pan[0] - at[0], view[1] + pan[1] - at[1], view[2], view[3]]);
  }
});
for (const kind of ["pointerup", "pointercancel"]) {
  sheet.addEventListener(kind, (event) => { fingers.delete(event.pointerId); pan = null; pinch = 0; });
}
byId("closer").addEventListener("click", () => zoom(0.67));
byId("farther").addEventListener("click", () => zoom(1.5));

// Heat and boxes.
const heat = sheet.querySelector("image.heat");
const boxes = sheet.querySelector("g.boxes");
const toggles = { heat: heat, boxes: byId("boxes") ? boxes : null };
function toggle(name) {
  const layer = toggles[name];
  if (!layer) return;
  const on = layer.getAttribute("visibility") === "hidden";
  if (on && layer.dataset.href && !layer.getAttribute("href")) layer.setAttribute("href", layer.dataset.href);
  layer.setAttribute("visibility", on ? "visible" : "hidden");
  byId(name).setAttribute("aria-pressed", String(on));
}
for (const name of ["heat", "boxes"]) byId(name)?.addEventListener("click", () => toggle(name));
for (const name of ["polygon", "box"]) {
  byId(name).addEventListener("click", () => draw.mode(draw.kind === name ? null : name));
}
sheet.addEventListener("mode", (event) => {
  for (const name of ["polygon", "box"]) byId(name).setAttribute("aria-pressed", String(event.detail === name));
});

// Decisions: the forms also work without this script, which stays on the page, with the drawing, where the server is away.
let sent = false;
const decide = (action) => form.requestSubmit(form.querySelector(`button[value=${action}]`));
addEventListener("submit", async (event) => {
  if (event.target.getAttribute("method") !== "post") return;
  event.preventDefault();
  if (sent) return;
  if (event.submitter?.value === "anomaly") draw.finish(); // no other decision saves the shapes
  else if ((unsaved || draw.begun) && !confirm("This does not save the drawing. Go on without it?")) return;
  sent = true;
  try {
    await send(event.target, event.submitter);
    unsaved = false; // also for who comes back with the browser's "back"
  } catch (cause) {
    sent = false;
    if (cause.status === 409) await catchUp().catch(() => {}); // so that one can still decide otherwise
    const kept = cause.status ? "" : " What you drew and wrote is still here: decide again when it is back.";
    trouble(cause.message + kept, cause.status === 401);
  }
});
function trouble(words, out = false) {
  const login = Object.assign(document.createElement("a"), { href: "/login", target: "_blank", textContent: "Log in" });
  byId("trouble").replaceChildren(words, ...(out ? [" ", login] : []));
  byId("trouble").hidden = false;
}
async function catchUp() {
  const html = await (await ask(`/review/${form.dataset.image}/history?${form.dataset.query}`, { headers: { Accept: "text/html" } })).text();
  byId("history").outerHTML = html;
  form.elements.seen.value = byId("history").dataset.latest;
}
// The browser asks whether to leave a drawing behind.
addEventListener("beforeunload", (event) => {
  if (!sent && (unsaved || draw.begun)) event.preventDefault();
});
addEventListener("pageshow", () => { sent = false; }); // also when the browser's "back" brings this page again
form.elements.defect.addEventListener("keydown", (event) => {
  if (event.key === "Enter") { event.preventDefault(); decide("anomaly"); }
  if (event.key === "Escape") { event.preventDefault(); event.target.blur(); }
});

const keys = {
  a: () => decide("anomaly"),
  g: () => decide("good"),
  s: () => decide("skip"),
  b: () => decide("again"),
  u: () => byId("undo").requestSubmit(),
  t: () => form.elements.defect.select(),
  d: () => draw.mode("polygon"),
  x: () => draw.mode("box"),
  h: () => toggle("heat"),
  o: () => toggle("boxes"),
  ArrowLeft: () => byId("previous")?.click(),
  ArrowRight: () => byId("next")?.click(),
  "?": () => { byId("keys").open = !byId("keys").open; },
  "+": () => zoom(0.67),
  "-": () => zoom(1.5),
  0: () => show([0, 0, width, height]),
};
// Before app.js, whose "g" goes to other pages.
addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, select, textarea")) return;
  const button = event.target.closest("button, a, summary") && (event.key === "Enter" || event.key === " ");
  if (button && !draw.kind) return;
  if (!draw.key(event)) {
    if (!keys[event.key] || event.repeat) return;
    keys[event.key]();
  }
  event.preventDefault();
  event.stopImmediatePropagation();
}, true);

// The next image is there before it is asked for.
const next = byId("next");
if (next) new Image().src = next.dataset.image;

// Somebody else decides about the image that is open.
when("correction", async (ref) => {
  const row = await (await ask(`/api/v1/corrections/${ref}`)).json();
  if (row.image_id !== Number(form.dataset.image) || sent) return;
  const known = Number(form.elements.seen.value);
  await catchUp();
  if (row.action === "skip" || known >= row.id) return;
  const kind = row.defect ? ` (${row.defect})` : "";
  const words = { label: `called this ${row.label === "anomaly" ? "an anomaly" : "good"}${kind}`, again: "sent this back for another look", undo: "undid a correction of this" };
  trouble(form.dataset.query.includes("show=second") ? `${row.by} decided about this image just now.`
    : `${row.by} ${words[row.action]} just now. You can still decide otherwise.`);
});
