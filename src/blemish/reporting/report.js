// Without this script every image is shown, and each card's own buttons switch its views.
{
  const form = document.querySelector("form.filters");
  const gallery = document.getElementById("gallery");
  form.hidden = false;
  const show = () => {
    const wanted = new FormData(form);
    let shown = 0;
    for (const card of gallery.children) {
      const { outcome, defect } = card.dataset;
      card.hidden = Boolean((wanted.get("show") && outcome !== wanted.get("show"))
        || (wanted.get("defect") && defect !== wanted.get("defect")));
      shown += !card.hidden;
    }
    gallery.classList.toggle("bare", !wanted.has("marks"));
    form.querySelector("output").textContent = shown === gallery.children.length ? "" : `${shown} shown`;
  };
  form.addEventListener("change", (event) => {
    if (event.target.name === "view" && event.target.value) {
      for (const view of gallery.querySelectorAll(`input[value="${event.target.value}"]`)) view.checked = true;
    }
    show();
  });
  form.addEventListener("submit", (event) => event.preventDefault());
  form.reset();
  show();
  // A click on an image shows its next view; the buttons below it do so by keyboard.
  gallery.addEventListener("click", (event) => {
    const views = [...event.target.closest(".stack")?.parentElement.querySelectorAll("input") ?? []];
    if (views.length) views[(views.findIndex((view) => view.checked) + 1) % views.length].checked = true;
  });
}
