// The threshold and the review band slide over the calibration scores; rates come from the server, counts are made here.
import { notice, send } from "./app.js";

const form = document.getElementById("slider");
if (form) {
  const data = JSON.parse(document.getElementById("scores").textContent);
  const { steps } = data;
  const [flag, aside] = ["flag", "aside"].map((id) => document.getElementById(id));
  const fields = { flag: document.getElementById("false_alarms"), aside: document.getElementById("review") };
  const low = Number(form.dataset.low);
  const high = Number(form.dataset.high);
  const x = (score) => 1000 * Math.min(1, Math.max(0, (score - low) / (high - low)));
  const shown = (score) => String(Number(score.toPrecision(4)));
  // Rounded up, so that the rate that is written is one that the threshold keeps.
  const digits = Math.max(2, Math.ceil(Math.log10(data.scores.length + 1)));
  const percent = (rate) => String(Number((Math.ceil(rate * 100 * 10 ** digits - 1e-6) / 10 ** digits).toFixed(digits)));
  const put = (id, text) => { document.getElementById(id).textContent = text; };
  const above = (scores, threshold) => scores.filter((score) => score > threshold).length;

  // The step that has this threshold, or the lowest one whose rate is not above this rate.
  const at = (threshold) => Math.max(0, steps.findIndex((step) => step.threshold >= threshold));
  const of = (rate) => {
    const found = steps.findIndex((step) => step.rate <= rate + 1e-9);
    return found < 0 ? steps.length - 1 : found;
  };
  const nearest = (place) => steps.reduce((best, step, index) =>
    (Math.abs(x(step.threshold) - place) < Math.abs(x(steps[best].threshold) - place) ? index : best), 0);

  // Numbers of steps. The band keeps its lower end where the threshold moves; without a band it is past the last step.
  let chosen = at(data.threshold);
  let band = data.review_threshold === null ? steps.length : at(data.review_threshold);

  function tell(write = true) {
    const t = steps[chosen];
    const r = steps[Math.min(band, chosen)];
    const aparted = r.threshold < t.threshold;
    flag.value = x(t.threshold);
    aside.value = x(r.threshold);
    for (const [id, score] of [["line", t.threshold], ["review-line", r.threshold]]) {
      const line = document.getElementById(id);
      line.setAttribute("x1", x(score));
      line.setAttribute("x2", x(score));
    }
    const rectangle = document.getElementById("band");
    rectangle.setAttribute("x", x(r.threshold));
    rectangle.setAttribute("width", Math.max(0, x(t.threshold) - x(r.threshold)));
    put("at", `score ${shown(t.threshold)}`);
    put("review-at", aparted ? `score ${shown(r.threshold)}` : "the same: nothing is put aside");
    flag.setAttribute("aria-valuetext", `score ${shown(t.threshold)}, at most ${percent(t.rate)} % false alarms`);
    aside.setAttribute("aria-valuetext", aparted ? `score ${shown(r.threshold)}, at most ${percent(r.rate)} % flagged or put aside` : "nothing is put aside");
    put("rate", `at most ${percent(t.rate)} %`);
    if (data.good.length) put("false-alarms", `${above(data.good, t.threshold)} of ${data.good.length} labelled good images`);
    const found = above(data.defective, t.threshold);
    const waiting = above(data.defective, r.threshold) - found;
    if (data.defective.length) {
      put("missed", `${data.defective.length - found - waiting} of ${data.defective.length}`);
      put("found", `${found} found, ${waiting} put aside`);
    }
    // Two bounds that hold with confidence have no difference that does.
    const apart = data.confidence === null ? `${percent(r.rate - t.rate)} % of good parts` : `at most ${percent(r.rate)} %, with what is flagged`;
    put("put-aside", aparted ? apart : "none");
    put("put-aside-of", `${above(data.good, r.threshold) - above(data.good, t.threshold)} labelled good, ${waiting} defective`);
    if (write && fields.flag) {
      fields.flag.value = percent(t.rate);
      fields.aside.value = aparted ? percent(r.rate) : "";
    }
  }

  const last = steps.length - 1;
  const set = { flag: (index) => { chosen = index; }, aside: (index) => { band = index < chosen ? index : steps.length; } };
  const current = { flag: () => chosen, aside: () => Math.min(band, chosen) };
  // From step to step with the keys, since the steps are not evenly spaced.
  const moves = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, PageDown: -5, PageUp: 5, Home: -Infinity, End: Infinity };
  for (const slider of [flag, aside]) {
    slider.addEventListener("input", () => { set[slider.id](nearest(Number(slider.value))); tell(); });
    slider.addEventListener("keydown", (event) => {
      if (!(event.key in moves)) return;
      event.preventDefault();
      set[slider.id](Math.min(last, Math.max(0, current[slider.id]() + moves[event.key])));
      tell();
    });
  }
  for (const field of Object.values(fields)) {
    field?.addEventListener("input", () => {
      chosen = of(Number(fields.flag.value) / 100);
      const review = Number(fields.aside.value) / 100;
      set.aside(review ? of(review) : steps.length);
      tell(false);
    });
  }
  tell(false);

  // Sent beside the page, which stays with what was chosen and written where the server is away or refuses.
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const button = form.querySelector("button.primary");
    if (!button) return;  // who may only look
    button.disabled = true;
    try {
      await send(form); // and goes on to the new version
    } catch (cause) {
      notice(cause.message, "error");
      button.disabled = false;
    }
  });
}
