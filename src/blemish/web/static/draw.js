// Polygons and boxes, drawn and fixed with mouse, finger or keys in an SVG whose user units are the image's pixels.
//
//   const draw = drawing(svg, { width, height, shapes, changed, told });
//   draw.mode("polygon" | "box" | null); draw.key(event) -> whether it was for the drawing; draw.finish();
//   draw.begun -> whether a shape is not closed yet; draw.shapes -> [{ points: [[x, y], ...] }]; draw.refresh() after the viewBox or the size has changed.

const SPACE = "http://www.w3.org/2000/svg";
const CLOSE = 12; // screen pixels from the first point within which a click closes the polygon

const made = (name, attributes, parent) => {
  const element = document.createElementNS(SPACE, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  parent.append(element);
  return element;
};
const round = (value) => Math.round(value * 10) / 10;
const text = (points) => points.map((point) => point.join(",")).join(" ");

export function drawing(svg, { width, height, shapes = [], changed = () => {}, told = () => {} }) {
  const layer = svg.querySelector("g.shapes") ?? made("g", { class: "shapes" }, svg);
  let kind = null; // what is being drawn
  let points = []; // of what is not closed yet
  let cursor = null; // where pointer or keys are
  let keyed = false; // moved by keys: then it is shown as a cross
  let chosen = -1;
  let drag = null;

  const unit = () => 1 / (svg.getScreenCTM()?.a || 1); // user units of one screen pixel
  const clamped = ([x, y]) => [round(Math.min(Math.max(x, 0), width)), round(Math.min(Math.max(y, 0), height))];
  const where = (event) => {
    const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
    return clamped([at.x, at.y]);
  };
  const far = (a, b) => Math.hypot(a[0] - b[0], a[1] - b[1]) / unit();

  function tell() {
    if (kind === "polygon") {
      told(points.length < 3 ? `Polygon: ${points.length} of at least 3 points. Click, or arrows and Space. Esc ends it.`
        : `Polygon: ${points.length} points. Enter, or a click on the first point, closes it.`);
    } else if (kind === "box") {
      told(points.length ? "Box: set the opposite corner." : "Box: drag from corner to corner, or arrows and Space. Esc ends it.");
    } else if (chosen >= 0) {
      told(`Shape ${chosen + 1} of ${shapes.length} is chosen: drag its corners, or Del removes it.`);
    } else {
      told(shapes.length ? `${shapes.length} ${shapes.length === 1 ? "shape" : "shapes"}.` : "");
    }
  }

  function handle(at, attributes, size = 6) {
    const group = made("g", { class: "handle", ...attributes }, layer);
    made("circle", { class: "reach", cx: at[0], cy: at[1], r: 18 * unit() }, group);
    made("circle", { class: "dot", cx: at[0], cy: at[1], r: size * unit() }, group);
  }

  const corners = ([a, b], [c, d]) => [[a, b], [c, b], [c, d], [a, d]];

  function refresh() {
    layer.replaceChildren();
    shapes.forEach((shape, index) => {
      made("polygon", { points: text(shape.points), "data-shape": index, class: index === chosen ? "chosen" : "" }, layer);
    });
    if (chosen >= 0 && !kind) {
      const ring = shapes[chosen].points;
      ring.forEach((point, index) => {
        const next = ring[(index + 1) % ring.length];
        if (far(point, next) > 60) {
          handle([(point[0] + next[0]) / 2, (point[1] + next[1]) / 2], { "data-between": index }, 3.5);
        }
      });
      ring.forEach((point, index) => handle(point, { "data-corner": index }));
    }
    if (kind === "box" && points.length && cursor) made("polygon", { points: text(corners(points[0], cursor)), class: "open" }, layer);
    if (kind === "polygon" && points.length) {
      made("polyline", { points: text(cursor ? [...points, cursor] : points), class: "open" }, layer);
      points.forEach((point, index) => made("circle", { class: index ? "dot" : "dot first", cx: point[0], cy: point[1], r: 5 * unit() }, layer));
    }
    if (kind && keyed && cursor) {
      const arm = 14 * unit();
      const [x, y] = cursor;
      made("path", { class: "cross", d: `M${x - arm},${y}H${x + arm}M${x},${y - arm}V${y + arm}` }, layer);
    }
  }

  function update() { refresh(); tell(); }

  function add(ring) {
    shapes.push({ points: ring });
    chosen = shapes.length - 1;
    changed(shapes);
  }

  function finish() {
    if (kind === "polygon" && points.length >= 3) add(points);
    points = [];
    if (kind) mode(null);
  }

  function mode(name) {
    kind = name;
    points = [];
    cursor = null;
    keyed = false;
    if (name) chosen = -1;
    svg.classList.toggle("draws", Boolean(name));
    update();
    svg.dispatchEvent(new CustomEvent("mode", { detail: name }));
  }

  // A corner of what is being drawn, by click or key.
  function set(at) {
    if (kind === "box") {
      if (!points.length) points = [at];
      else if (Math.abs(points[0][0] - at[0]) > 1 && Math.abs(points[0][1] - at[1]) > 1) {
        add(corners(points[0], at));
        return mode(null);
      }
    } else if (points.length >= 3 && (far(points[0], at) < CLOSE || far(points.at(-1), at) < 4)) {
      return finish();
    } else if (!points.length || far(points.at(-1), at) >= 2) {
      points.push(at);
    }
    update();
  }

  svg.addEventListener("pointerdown", (event) => {
    if (event.button || !event.isPrimary) return;
    const at = where(event);
    if (kind) {
      event.preventDefault();
      keyed = false;
      cursor = at;
      if (kind === "box" && !points.length) drag = { box: true, from: at };
      set(at);
      if (drag) svg.setPointerCapture(event.pointerId);
      return;
    }
    const corner = event.target.closest("[data-corner], [data-between]");
    const shape = event.target.closest("[data-shape]");
    if (corner && chosen >= 0) {
      const ring = shapes[chosen].points;
      let index = Number(corner.dataset.corner);
      if (corner.dataset.between) {
        index = Number(corner.dataset.between) + 1;
        ring.splice(index, 0, at);
      }
      drag = { index };
    } else if (shape) {
      chosen = Number(shape.dataset.shape);
      drag = { from: at, ring: shapes[chosen].points.map((point) => [...point]) };
    } else {
      if (chosen >= 0) { chosen = -1; update(); }
      return; // the page may pan
    }
    event.preventDefault();
    event.stopImmediatePropagation();
    svg.setPointerCapture(event.pointerId);
    update();
  });

  svg.addEventListener("pointermove", (event) => {
    if (!drag && !(kind && event.pointerType === "mouse")) return;
    const at = where(event);
    if (kind) cursor = at;
    else if (drag.ring) {
      // As a whole, and not over the edge.
      const xs = drag.ring.map((point) => point[0]);
      const ys = drag.ring.map((point) => point[1]);
      const dx = Math.min(Math.max(at[0] - drag.from[0], -Math.min(...xs)), width - Math.max(...xs));
      const dy = Math.min(Math.max(at[1] - drag.from[1], -Math.min(...ys)), height - Math.max(...ys));
      shapes[chosen].points = drag.ring.map(([x, y]) => clamped([x + dx, y + dy]));
    } else shapes[chosen].points[drag.index] = at;
    keyed = false;
    refresh();
  });

  svg.addEventListener("pointerup", (event) => {
    if (!drag) return;
    const { box, from } = drag;
    drag = null;
    if (box) {
      const at = where(event);
      if (kind === "box" && far(from, at) > 4) set(at);
    } else changed(shapes);
    update();
  });
  svg.addEventListener("pointercancel", () => { drag = null; update(); });

  const arrows = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

  function key(event) {
    if (kind) {
      if (arrows[event.key]) {
        const step = event.shiftKey ? 1 : Math.max(1, Math.round(Math.max(width, height) / 50));
        cursor ??= [width / 2, height / 2];
        cursor = clamped([cursor[0] + arrows[event.key][0] * step, cursor[1] + arrows[event.key][1] * step]);
        keyed = true;
        refresh();
      } else if (event.key === " ") {
        keyed = true;
        cursor ??= clamped([width / 2, height / 2]);
        set(cursor);
      } else if (event.key === "Enter") finish();
      else if (event.key === "Escape") mode(null);
      else if (event.key === "Backspace") { points.pop(); update(); }
      else return false;
      return true;
    }
    if (chosen >= 0 && (event.key === "Delete" || event.key === "Backspace")) {
      shapes.splice(chosen, 1);
      chosen = -1;
      changed(shapes);
      update();
      return true;
    }
    if (chosen >= 0 && event.key === "Escape") { chosen = -1; update(); return true; }
    return false;
  }

  new ResizeObserver(refresh).observe(svg);
  update();
  return { mode, key, finish, refresh, get shapes() { return shapes; }, get kind() { return kind; }, get begun() { return points.length > 0; } };
}
