// Without this script every image is shown, and a click opens it. With it, images can be filtered and browsed.

for (const form of document.querySelectorAll("form.filters")) {
  const gallery = document.getElementById(form.dataset.for);
  form.hidden = false;
  const show = () => {
    const wanted = new FormData(form);
    let shown = 0;
    for (const card of gallery.children) {
      const { outcome, defect } = card.dataset;
      card.hidden = (wanted.get("show") && outcome !== wanted.get("show"))
        || (wanted.get("defect") && defect !== wanted.get("defect"));
      shown += !card.hidden;
    }
    gallery.classList.toggle("bare", !wanted.has("outline"));
    form.querySelector("output").textContent = shown === gallery.children.length ? "" : `${shown} shown`;
  };
  form.addEventListener("change", show);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.reset();
  show();
}

// A link to a card that a filter hides resets the filter first.
addEventListener("click", (event) => {
  const link = event.target.closest("a[href^='#']");
  const card = link && document.getElementById(decodeURIComponent(link.hash.slice(1)));
  if (card?.hidden) {
    const form = document.querySelector(`form[data-for="${card.parentElement.id}"]`);
    form.reset();
    form.dispatchEvent(new Event("change"));
  }
});

const dialog = document.getElementById("large");
const sides = dialog.querySelector(".sides");
const [image, outline, heat, reconstruction] = sides.querySelectorAll("img");
let current = null;

function open(card) {
  current = card;
  const pair = card.querySelector(".pair");
  image.src = pair.dataset.image;
  image.alt = pair.querySelector("img").alt;
  outline.hidden = !pair.dataset.outline || card.parentElement.classList.contains("bare");
  if (!outline.hidden) outline.src = pair.dataset.outline;
  heat.hidden = !pair.dataset.heat;
  if (!heat.hidden) heat.src = pair.dataset.heat;
  heat.alt = "The same with heat and boxes";
  reconstruction.hidden = !pair.dataset.reconstruction;
  if (!reconstruction.hidden) reconstruction.src = pair.dataset.reconstruction;
  reconstruction.alt = reconstruction.title = "Reconstruction: how it would look if it were good";
  sides.classList.toggle("three", !reconstruction.hidden);
  const words = [".chip", ".title", ".numbers"].map((name) => card.querySelector(name).textContent.trim());
  dialog.querySelector("p").textContent = words.join(" · ");
  if (!dialog.open) dialog.showModal();
}

function step(by) {
  const shown = [...current.parentElement.children].filter((card) => !card.hidden);
  open(shown[(shown.indexOf(current) + by + shown.length) % shown.length]);
}

document.addEventListener("click", (event) => {
  const pair = event.target.closest(".pair");
  if (!pair || event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  open(pair.closest(".card"));
});
dialog.addEventListener("click", (event) => {
  const by = event.target.closest("button")?.dataset.step;
  if (by === "0" || event.target === dialog) dialog.close();
  else if (by) step(Number(by));
});
dialog.addEventListener("keydown", (event) => {
  if (event.key === "ArrowLeft") step(-1);
  if (event.key === "ArrowRight") step(1);
});
dialog.addEventListener("close", () => current?.querySelector(".pair").focus());
