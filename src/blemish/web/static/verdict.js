// The image page: heat, boxes and mask on and off, zoom, evidence, "why not here?", keys.
import { ask, notice, when } from "./app.js";
import { zoomable } from "./zoom.js";

const element = (id) => document.getElementById(id);
const stage = element("stage");
const REMEMBERED = "blemish-look"; // heat, boxes and mask stay as they are from one image to the next

function remembered() {
  try { return JSON.parse(sessionStorage.getItem(REMEMBERED)) ?? {}; } catch { return {}; }
}
function remember(change) {
  try { sessionStorage.setItem(REMEMBERED, JSON.stringify({ ...remembered(), ...change })); } catch { /* then not */ }
}

const layersOf = { heat: ["heat"], boxes: ["boxes"], mask: ["outline", "shapes"] };
function toggles() {
  for (const [name, ids] of Object.entries(layersOf)) {
    const box = element(`show-${name}`);
    if (!box) continue;
    const apply = () => {
      for (const id of ids) element(id)?.toggleAttribute("hidden", !box.checked);
      if (name === "heat") element("opacity").disabled = !box.checked;
    };
    box.checked = remembered()[name] ?? true;
    box.addEventListener("change", () => { apply(); remember({ [name]: box.checked }); });
    apply();
  }
  const opacity = element("opacity");
  if (!opacity) return;
  const apply = () => { element("heat").style.opacity = opacity.value / 100; };
  opacity.value = remembered().opacity ?? 100;
  opacity.addEventListener("input", () => { apply(); remember({ opacity: Number(opacity.value) }); });
  apply();
}

function flip(name) {
  const box = element(`show-${name}`);
  if (box) { box.checked = !box.checked; box.dispatchEvent(new Event("change")); }
}

// Labels stand above their box, or below it where the top of the view cuts them off.
function labels(each, [, top]) {
  const drawn = element("drawn");
  drawn.setAttribute("font-size", 13 / each);
  for (const text of element("boxes").querySelectorAll("text")) {
    text.dataset.top ??= text.getAttribute("y");
    const above = Number(text.dataset.top) - 6 / each;
    const room = above - 14 / each > top;
    text.setAttribute("y", room ? above : Number(text.dataset.bottom) + 17 / each);
  }
}

let cross = null;
function drawCross(each) {
  const group = element("cross");
  group.toggleAttribute("hidden", !cross);
  if (!cross) return;
  const [x, y] = [cross.x + 0.5, cross.y + 0.5];
  const [near, far] = [Math.max(5 / each, 0.7), Math.max(5 / each, 0.7) + 14 / each];
  const path = `M${x - far} ${y}H${x - near}M${x + near} ${y}H${x + far}M${x} ${y - far}V${y - near}M${x} ${y + near}V${y + far}`;
  for (const line of group.children) line.setAttribute("d", path);
}

if (stage) {
  const { verdict, width, height } = stage.dataset;
  const size = { width: Number(width), height: Number(height) };
  const asks = "asks" in stage.dataset;
  toggles();
  const whole = stage.querySelector(".whole");
  const loading = element("loading");
  if (!whole.complete) {
    loading.hidden = false;
    whole.addEventListener("load", () => { loading.hidden = true; });
    whole.addEventListener("error", () => { loading.textContent = "The image cannot be shown; it may be gone from the data folder."; });
  }
  element("heat")?.addEventListener("error", () => notice("The heat cannot be shown now; open the page again.", "error"));

  const zoom = zoomable(stage, {
    ...size,
    layers: stage.querySelector(".layers"),
    drawn: element("drawn"),
    changed: (each, box) => { element("zoom").value = `${Math.round(each * 100)} %`; labels(each, box); drawCross(each); },
    clicked: (x, y) => { if (asks) { cross = { x, y }; drawCross(zoom.perPixel()); why(x, y); } },
  });
  element("in").addEventListener("click", () => zoom.by(1.5));
  element("out").addEventListener("click", () => zoom.by(1 / 1.5));
  element("fit").addEventListener("click", zoom.reset);

  // The crosshair is there while the stage has the focus: with w, or on the way of the tab key.
  if (asks) {
    stage.tabIndex = 0;
    stage.setAttribute("role", "application");
    stage.setAttribute("aria-label", "The image. Arrow keys move a crosshair, Enter asks why there, Escape ends.");
    stage.addEventListener("focus", () => {
      cross ??= { x: Math.floor(size.width / 2), y: Math.floor(size.height / 2) };
      zoom.reveal(cross.x + 0.5, cross.y + 0.5);
    });
  }
  const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  stage.addEventListener("keydown", (event) => {
    if (!asks || !cross) return;
    if (steps[event.key]) {
      event.preventDefault();
      event.stopPropagation();
      // A step is a pixel of the image, but never less than can be seen.
      const far = Math.max(1, Math.round((event.shiftKey ? 40 : 4) / zoom.perPixel()));
      cross.x = Math.min(size.width - 1, Math.max(0, cross.x + steps[event.key][0] * far));
      cross.y = Math.min(size.height - 1, Math.max(0, cross.y + steps[event.key][1] * far));
      zoom.reveal(cross.x + 0.5, cross.y + 0.5);
    } else if (event.key === "Enter") {
      event.preventDefault();
      why(cross.x, cross.y);
    } else if (event.key === "Escape") {
      cross = null;
      drawCross(1);
      stage.blur();
    }
  });

  let asked = 0;
  async function why(x, y) {
    const mine = ++asked;
    const box = document.querySelector("#why .answer");
    box.hidden = false;
    box.setAttribute("aria-busy", "true");
    try {
      const found = await (await ask(`/api/v1/verdicts/${verdict}/why?x=${x}&y=${y}`)).json();
      if (mine === asked) answer(box, found);
    } catch (cause) {
      if (mine === asked) box.replaceChildren(line(cause.message, "error"));
    }
    if (mine === asked) box.removeAttribute("aria-busy");
  }

  function line(text, kind = "") {
    const made = document.createElement("p");
    made.textContent = text;
    made.className = kind;
    return made;
  }

  function answer(box, found) {
    const crops = document.createElement("div");
    crops.className = "crops";
    const words = { crop: "here", normal: "nearest normal" };
    for (const [kind, address] of Object.entries(found.nearest?.links ?? {})) {
      const figure = document.createElement("figure");
      const picture = new Image();
      picture.src = address;
      picture.alt = kind === "crop" ? `The place ${found.at.join(", ")}` : "The nearest normal patch";
      const caption = document.createElement("figcaption");
      caption.textContent = words[kind];
      figure.append(picture, caption);
      crops.append(figure);
    }
    const text = document.createElement("div");
    text.append(...found.sentences.map((sentence) => line(sentence)));
    box.replaceChildren(...(crops.children.length ? [crops] : []), text);
  }

  // Evidence comes after the image, since it takes another run of the detector.
  const evidence = element("evidence");
  if (evidence?.dataset.from) {
    ask(evidence.dataset.from, { headers: { Accept: "text/html" } })
      .then((found) => found.text())
      .then((html) => { evidence.innerHTML = html; })
      .catch((cause) => { evidence.querySelector(".waits").textContent = cause.message; })
      .finally(() => evidence.setAttribute("aria-busy", "false"));
  }
  evidence?.addEventListener("click", (event) => {
    const card = event.target.closest("[data-box]");
    if (!card || !event.target.closest("img")) return;
    zoom.frame(...card.dataset.box.split(" ").map(Number));
    stage.scrollIntoView({ block: "nearest" });
  });

  const help = element("keys");
  element("help").addEventListener("click", () => help.showModal());
  const keys = {
    h: () => flip("heat"), b: () => flip("boxes"), m: () => flip("mask"),
    "+": () => zoom.by(1.5), "=": () => zoom.by(1.5), "-": () => zoom.by(1 / 1.5), 0: zoom.reset,
    "[": () => shift(-10), "]": () => shift(10), w: () => { if (asks) stage.focus({ focusVisible: true }); },
    "?": () => help.showModal(),
  };
  const shift = (by) => {
    const opacity = element("opacity");
    if (opacity) { opacity.value = Number(opacity.value) + by; opacity.dispatchEvent(new Event("input")); }
  };
  let before = "";
  addEventListener("keydown", (event) => {
    if (busy(event)) return;
    if (keys[event.key] && before !== "g") { keys[event.key](); event.preventDefault(); }
    before = event.key;
  });
}

// What another person says of this image is here at once; several corrections are one look.
let waits = 0;
when("correction", () => {
  clearTimeout(waits);
  waits = setTimeout(async () => {
    const html = await (await ask(location.pathname, { headers: { Accept: "text/html" } })).text();
    const fresh = new DOMParser().parseFromString(html, "text/html");
    for (const part of [".said", "#shapes"]) {
      const [now, then] = [document.querySelector(part), fresh.querySelector(part)];
      if (now && then && now.innerHTML !== then.innerHTML) now.innerHTML = then.innerHTML;
    }
  }, 300);
});

function busy(event) {
  const typing = event.target.closest?.("select, textarea, input:not([type=checkbox])");
  return typing || event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented || document.querySelector("dialog[open]");
}
document.querySelector("#keys [data-close]").addEventListener("click", () => element("keys").close());
addEventListener("keydown", (event) => {
  if (busy(event)) return;
  const link = { ArrowLeft: "a[rel=prev]", ArrowRight: "a[rel=next]", c: ".actions a" }[event.key];
  if (link) document.querySelector(link)?.click();
});
