// Zoom and pan of layers in a stage, to the pixel: wheel, pinch, drag and buttons. The layers' first child is the image,
// shown whole at first; `drawn` is an SVG over them whose viewBox follows, so that its lines stay as thin as they are.

const MOST = 64; // screen pixels of one pixel of the image
const STILL = 6; // screen pixels that a finger may move and still mean a click

export function zoomable(stage, { width, height, layers, drawn, changed, clicked }) {
  const view = { scale: 1, x: 0, y: 0 }; // of the layers, before which the image already fits the stage
  const pointers = new Map();
  let moved = false;
  let pinch = null;

  // With fractions of pixels, or boxes and image would part when enlarged.
  const size = () => { const box = stage.getBoundingClientRect(); return { wide: box.width, high: box.height }; };
  const fit = () => {
    const { wide, high } = size();
    const scale = Math.min(wide / width, high / height);
    return { scale, x: (wide - width * scale) / 2, y: (high - height * scale) / 2 };
  };
  const most = () => Math.max(1, MOST / fit().scale);
  // Screen pixels from the stage's corner <-> pixels of the image, with fractions.
  const toImage = (x, y) => {
    const inner = fit();
    return [((x - view.x) / view.scale - inner.x) / inner.scale, ((y - view.y) / view.scale - inner.y) / inner.scale];
  };
  const perPixel = () => fit().scale * view.scale;

  function show() {
    const inner = fit();
    const { wide, high } = size();
    // The image stays in the stage: nobody loses it.
    view.x = bounded(view.x, view.scale, wide, inner.x, width * inner.scale);
    view.y = bounded(view.y, view.scale, high, inner.y, height * inner.scale);
    layers.style.transform = `translate(${view.x}px, ${view.y}px) scale(${view.scale})`;
    const [left, top] = toImage(0, 0);
    const each = perPixel();
    drawn.setAttribute("viewBox", `${left} ${top} ${wide / each} ${high / each}`);
    stage.classList.toggle("crisp", each * devicePixelRatio >= 2);
    stage.classList.toggle("zoomed", view.scale > 1.001);
    changed(each, [left, top, left + wide / each, top + high / each]);
  }

  function bounded(at, scale, room, inner, length) {
    const begin = inner * scale;
    const end = begin + length * scale;
    if (end - begin <= room) return (room - begin - end) / 2;
    return Math.min(-begin, Math.max(room - end, at));
  }

  // By a factor around a place of the screen, which stays where it is.
  function by(factor, x = size().wide / 2, y = size().high / 2) {
    const scale = Math.min(most(), Math.max(1, view.scale * factor));
    view.x = x - (x - view.x) * (scale / view.scale);
    view.y = y - (y - view.y) * (scale / view.scale);
    view.scale = scale;
    show();
  }
  function reset() {
    Object.assign(view, { scale: 1, x: 0, y: 0 });
    show();
  }
  // A place of the image into view, with some room around it.
  function reveal(x, y) {
    const each = perPixel();
    const inner = fit();
    const place = [(inner.x + x * inner.scale) * view.scale, (inner.y + y * inner.scale) * view.scale];
    const { wide, high } = size();
    const room = [wide, high].map((length) => Math.min(length / 4, 20 + each));
    view.x = Math.max(room[0], Math.min(wide - room[0], place[0] + view.x)) - place[0];
    view.y = Math.max(room[1], Math.min(high - room[1], place[1] + view.y)) - place[1];
    show();
  }
  // A box of the image as large as it fits, with as much again around it.
  function frame(left, top, right, bottom) {
    const inner = fit();
    const { wide, high } = size();
    const wanted = Math.min(wide / (right - left), high / (bottom - top)) / 2 / inner.scale;
    view.scale = Math.min(most(), Math.max(1, wanted));
    view.x = wide / 2 - (inner.x + ((left + right) / 2) * inner.scale) * view.scale;
    view.y = high / 2 - (inner.y + ((top + bottom) / 2) * inner.scale) * view.scale;
    show();
  }

  const at = (event) => {
    const box = stage.getBoundingClientRect();
    return [event.clientX - box.left - stage.clientLeft, event.clientY - box.top - stage.clientTop];
  };
  stage.addEventListener("wheel", (event) => {
    if (event.ctrlKey === false && event.deltaY > 0 && view.scale <= 1.001) return; // the page scrolls on
    event.preventDefault();
    const lines = event.deltaMode === 1 ? 20 : 1;
    by(Math.exp(Math.max(-1, Math.min(1, -event.deltaY * lines / (event.ctrlKey ? 100 : 300)))), ...at(event));
  }, { passive: false });
  stage.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    event.preventDefault(); // no focus and no selection: arrow keys go on to the next image
    if (!pointers.size) moved = false;
    pointers.set(event.pointerId, at(event));
    if (pointers.size === 2) { moved = true; pinch = spread(); }
  });
  stage.addEventListener("pointermove", (event) => {
    const before = pointers.get(event.pointerId);
    if (!before) return;
    const now = at(event);
    if (!moved && Math.hypot(now[0] - before[0], now[1] - before[1]) < STILL) return;
    if (!moved) stage.setPointerCapture?.(event.pointerId);
    moved = true;
    pointers.set(event.pointerId, now);
    if (pointers.size === 2) {
      const next = spread();
      view.x += next.x - pinch.x;
      view.y += next.y - pinch.y;
      by(next.apart / pinch.apart, next.x, next.y);
      pinch = next;
    } else if (pointers.size === 1) {
      view.x += now[0] - before[0];
      view.y += now[1] - before[1];
      show();
    }
  });
  const end = (event) => {
    const was = pointers.delete(event.pointerId);
    if (was && event.type === "pointerup" && !moved && !pointers.size) {
      const [x, y] = toImage(...at(event)).map(Math.floor);
      if (x >= 0 && y >= 0 && x < width && y < height) clicked(x, y);
    }
  };
  stage.addEventListener("pointerup", end);
  stage.addEventListener("pointercancel", end);

  function spread() {
    const [[ax, ay], [bx, by_]] = [...pointers.values()];
    return { x: (ax + bx) / 2, y: (ay + by_) / 2, apart: Math.max(1, Math.hypot(ax - bx, ay - by_)) };
  }

  new ResizeObserver(show).observe(stage);
  show();
  return { by, reset, reveal, frame, perPixel };
}
