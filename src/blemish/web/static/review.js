// The grid of the review: thumbnails are ticked and decided with keys, fingers or mouse; nothing is loaded again.
import { ask, notice, when } from "./app.js";

document.querySelector(".shows [aria-current]")?.scrollIntoView({ block: "nearest", inline: "center" }); // on a phone they are one row

const form = document.getElementById("decide");
if (form) {
  const list = document.getElementById("tiles");
  const nothing = document.querySelector(".nothing");
  const { query, show } = form.dataset;
  let more = form.dataset.more;
  let at = null; // the tile that has the focus, or had it last
  let keyed = false; // by keys: with a pointer nobody sees where the focus is
  let anchor = null; // where a range of ticks begins
  const done = []; // groups of numbers of corrections on this page, for undo
  const undoing = document.getElementById("undo");
  const state = document.getElementById("ticked");
  const fingers = matchMedia("(pointer: coarse)").matches;

  const tiles = () => [...list.children];
  const box = (tile) => tile.querySelector("input");
  const ticked = () => tiles().filter((tile) => box(tile).checked);
  const html = async (address) => (await ask(address, { headers: { Accept: "text/html" } })).text();
  const nameOf = (tile) => box(tile).ariaLabel;
  const record = (words) => { document.getElementById("recorded").textContent = words; };
  const tileOf = (image) => document.getElementById(`image-${image}`);

  function focus(tile) {
    if (!tile) return;
    at = tile;
    for (const other of tiles()) box(other).tabIndex = other === tile ? 0 : -1;
    box(tile).focus({ preventScroll: true });
    tile.scrollIntoView({ block: "nearest" });
  }
  const tell = () => {
    const count = ticked().length;
    state.classList.remove("warning");
    state.textContent = count ? `${count} ticked:` : keyed && at ? `${nameOf(at)}, which has the focus:`
      : fingers ? "Tick images to decide about them." : "Tick images, or use the arrow keys:";
    undoing.disabled = !done.length;
    nothing.hidden = list.children.length > 0;
    form.hidden = !list.children.length && !done.length;
  };

  // The counts of the heading and of the lists, once after a burst: those of a page behind the last image.
  let later = 0;
  function recount() {
    clearTimeout(later);
    later = setTimeout(async () => {
      const fresh = new DOMParser().parseFromString(await html(`/review?${query}&after=99,1`), "text/html");
      const lead = document.querySelector(".lead-line p");
      const shows = document.querySelector(".shows");
      lead.innerHTML = fresh.querySelector(".lead-line p").innerHTML;
      const then = fresh.querySelector(".shows");
      for (const count of then.querySelectorAll("[data-count]")) {
        const now = shows.querySelector(`[data-count=${count.dataset.count}]`);
        if (now) now.textContent = count.textContent;
      }
      if (then.childElementCount !== shows.childElementCount && !shows.contains(document.activeElement)) shows.innerHTML = then.innerHTML;
    }, 300);
  }

  async function refresh(image) {
    const old = tileOf(image);
    const template = document.createElement("template");
    template.innerHTML = await html(`/review/${image}/tile?${query}`);
    const tile = template.content.querySelector("li");
    if (old) {
      box(tile).checked = box(old).checked;
      const had = old.contains(document.activeElement) || at === old;
      old.replaceWith(tile);
      if (had) focus(tile);
    } else {
      list.prepend(tile);
      box(tile).tabIndex = -1;
    }
    return tile;
  }

  async function fill() {
    if (!more || list.children.length > 24) return;
    const after = more;
    more = "";
    const template = document.createElement("template");
    template.innerHTML = await html(`/review/tiles?${query}&after=${encodeURIComponent(after)}`);
    const added = [...template.content.querySelectorAll("li")].filter((tile) => !document.getElementById(tile.id));
    if (added.length) more = added.at(-1).dataset.place;
    for (const tile of added) box(tile).tabIndex = -1;
    list.append(...added);
    document.querySelector(".further")?.remove();
    tell();
  }

  let busy = false;
  async function decide(action) {
    const some = ticked();
    const targets = some.length ? some : keyed && at ? [at] : [];
    if (!targets.length) {
      state.textContent = fingers ? "Tick an image first." : "Tick an image first, or move to one with the arrow keys.";
      state.classList.add("warning");
      return;
    }
    if (busy) return;
    busy = true;
    const group = [];
    const body = { action: action === "good" || action === "anomaly" ? "label" : action };
    if (body.action === "label") body.label = action;
    const defect = form.elements.defect.value.trim();
    if (action === "anomaly" && defect) body.defect = defect;
    const names = targets.map(nameOf);
    const last = tiles().indexOf(targets.at(-1));
    const next = tiles().slice(last + 1).find((tile) => !targets.includes(tile)) ?? tiles().slice(0, last).reverse().find((tile) => !targets.includes(tile));
    try {
      for (const tile of targets) {
        const image = tile.dataset.image;
        const seen = { seen_correction: Number(tile.dataset.seen) };
        if (tile.dataset.verdict) seen.seen_verdict = Number(tile.dataset.verdict);
        try {
          const answer = await ask(`/api/v1/images/${image}/corrections`, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ ...body, ...seen }) });
          group.push((await answer.json()).id);
        } catch (cause) {
          notice(cause.message, "error");
          if (cause.status === 409) { await refresh(image); continue; }
          break;
        }
        if (show === "all" || show === "labelled" || action === "again") box(await refresh(image)).checked = false;
        else tileOf(image)?.remove();
      }
    } finally {
      busy = false;
      if (group.length) {
        done.push(group);
        const what = { good: "recorded as good", anomaly: `recorded as ${group.length > 1 ? "anomalies" : "an anomaly"}${body.defect ? ` (${body.defect})` : ""}`, skip: "skipped", again: "sent back" }[action];
        record(`${group.length > 1 ? `${group.length} images` : names.length === 1 ? names[0] : "1 image"}: ${what}.`);
      }
    }
    if (keyed && next?.isConnected) focus(next);
    else if (at && !at.isConnected) { at = null; if (keyed) focus(tiles()[0]); }
    tell();
    recount();
    await fill();
  }

  async function undo() {
    const group = done.pop();
    if (!group) {
      // What was decided on the page before is named in a line of its own.
      const named = document.querySelector("form.flash button");
      if (named) named.click();
      else record("Nothing has been decided on this page yet; what was decided before is undone on the image's own page.");
      return;
    }
    let tile = null;
    try {
      for (const id of group.reverse()) {
        const row = await (await ask(`/api/v1/corrections/${id}/undo`, { method: "POST" })).json();
        tile = await refresh(row.image_id);
      }
      record(`${group.length > 1 ? `${group.length} images` : nameOf(tile)}: taken back.`);
    } catch (cause) {
      notice(cause.message, "error");
    }
    if (keyed) focus(tile ?? tiles()[0]);
    tell();
    recount();
  }

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (event.submitter?.value) decide(event.submitter.value);
  });
  undoing.addEventListener("click", undo);
  addEventListener("keydown", () => { if (!keyed) { keyed = true; tell(); } }, true);
  addEventListener("pointerdown", () => { if (keyed) { keyed = false; tell(); } }, true);
  list.addEventListener("change", tell);
  list.addEventListener("focusin", (event) => {
    at = event.target.closest("li") ?? at;
    tell();
  });
  list.addEventListener("click", (event) => {
    const tile = event.target.closest("li");
    if (!tile || event.target !== box(tile)) return;
    if (event.shiftKey && anchor?.isConnected) range(anchor, tile, box(tile).checked);
    anchor = tile;
  });
  function range(from, to, on) {
    const all = tiles();
    const [first, last] = [all.indexOf(from), all.indexOf(to)].sort((a, b) => a - b);
    for (const tile of all.slice(first, last + 1)) box(tile).checked = on;
    tell();
  }

  function move(key, shift) {
    const all = tiles();
    const now = Math.max(all.indexOf(at), 0);
    const row = all.filter((tile) => tile.offsetTop === all[0].offsetTop).length;
    const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -row, ArrowDown: row }[key];
    const to = key === "Home" ? all[0] : key === "End" ? all.at(-1) : at === null ? all[0] : all[now + step];
    if (!to) return;
    if (shift) {
      if (!anchor?.isConnected) anchor = at ?? to;
      box(anchor).checked = true;
      range(anchor, to, true);
    }
    focus(to);
  }

  const actions = { g: "good", a: "anomaly", s: "skip", b: "again" };
  // Before app.js, whose "g" goes to other pages.
  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input:not([type=checkbox]), select, textarea")) return;
    const inside = list.contains(event.target) || event.target === document.body || event.target.id === "main";
    if (event.key.startsWith("Arrow") || event.key === "Home" || event.key === "End") {
      if (!inside) return;
      move(event.key, event.shiftKey);
    } else if (event.key === "Enter" && inside && at) at.querySelector("a").click();
    else if (event.key === " " && event.shiftKey && inside && at) range(anchor?.isConnected ? anchor : at, at, true);
    else if (actions[event.key] && !event.repeat) decide(actions[event.key]);
    else if (event.key === "u" && !event.repeat) undo();
    else if (event.key === "?") { const keys = document.getElementById("keys"); keys.open = !keys.open; }
    else {
      if (event.key === " " && inside) anchor = at;
      return;
    }
    event.preventDefault();
    event.stopImmediatePropagation();
  }, true);

  // What others decide: their tiles say so, and can still be decided otherwise.
  when("correction", async (ref) => {
    recount();
    if (busy) return;
    const row = await (await ask(`/api/v1/corrections/${ref}`)).json();
    const tile = tileOf(row.image_id);
    if (!tile || busy || Number(tile.dataset.seen) >= row.id) return;
    await refresh(row.image_id);
  });
  when("verdict", recount);
  for (const tile of tiles()) box(tile).tabIndex = -1;
  if (list.firstElementChild) box(list.firstElementChild).tabIndex = 0;
  tell();
}
