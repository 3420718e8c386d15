// Drops, choices and the camera: each image is one request, two at a time; verdicts appear as they come.
import { ask, notice, unique, when } from "./app.js";

// A body that took too long, a proxy whose server restarts, a full disk, a locked database: it is asked again.
const LATER = [408, 429, 502, 503, 504, 507];

const form = document.getElementById("drop");
if (form) {
  const list = document.getElementById("verdicts");
  const failures = document.getElementById("failures");
  const progress = document.getElementById("progress");
  const waiting = [];
  const none = { done: 0, total: 0, failed: 0, unread: 0, trouble: "", out: false };
  const counts = { ...none };
  let busy = 0;

  const tell = () => {
    const { done, total, failed, unread, trouble, out } = counts;
    progress.hidden = total === 0;
    progress.querySelector("progress").max = total || 1;
    progress.querySelector("progress").value = done;
    const lacking = `${unread ? `, ${unread} could not be judged` : ""}${failed ? `, ${failed} not sent` : ""}`;
    progress.querySelector("p").textContent = trouble
      || (done < total ? `${done} of ${total} done${lacking}` : `${total - failed - unread} judged${lacking}.`);
    progress.classList.toggle("trouble", Boolean(trouble));
    progress.querySelector("a").hidden = !out;
  };

  // What is not sent yet is lost with the page.
  addEventListener("beforeunload", (event) => { if (busy) event.preventDefault(); });

  async function show(ref) {
    if (document.getElementById(`verdict-${ref}`)) return;
    const html = await (await ask(`/verdicts/${ref}/card`, { headers: { Accept: "text/html" } })).text();
    if (document.getElementById(`verdict-${ref}`)) return;
    list.insertAdjacentHTML("afterbegin", html);
    if (list.firstElementChild.dataset.product !== form.dataset.product) return list.firstElementChild.remove();
    document.querySelector(".nothing").hidden = true;
    while (list.children.length > Number(list.dataset.most)) list.lastElementChild.remove();
  }

  function fail(name, words) {
    counts.failed += 1;
    const line = document.createElement("li");
    line.textContent = words.startsWith(name) ? words : `${name}: ${words}`;
    failures.append(line);
  }

  const pause = (milliseconds) => new Promise((done) => setTimeout(done, milliseconds));
  function wait(cause, until, out = false) {
    const left = counts.total - counts.done;
    const words = left === 1 ? "1 image waits here and is" : `${left} images wait here and are`;
    Object.assign(counts, { trouble: `${cause} ${words} sent when ${until}; leave this page open.`, out });
    tell();
  }

  // The same request again, as long as it takes: an image is judged once.
  async function send({ file, name, source, key }) {
    const address = `/api/v1/inspect?${new URLSearchParams({ product: form.dataset.product, name, source })}`;
    const headers = { "Content-Type": "application/octet-stream", "Idempotency-Key": key };
    for (let tries = 0; ; tries += 1) {
      try {
        const [verdict] = await (await ask(address, { method: "POST", body: file, headers })).json();
        Object.assign(counts, { trouble: "", out: false });
        counts.unread += verdict.decision === "error";
        return await show(verdict.id).catch(() => {}); // it is recorded; the list has it when the page is loaded again
      } catch (cause) {
        if (cause.status === 401) {
          wait("You are logged out.", "you have logged in", true);
          await pause(2000);
        } else if (cause.status && !LATER.includes(cause.status)) {
          return fail(name, cause.message);
        } else {
          if (tries > 1) wait(cause.message, "it answers");
          await pause(Math.min(5000, 300 * 2 ** tries));
        }
      }
    }
  }

  async function work() {
    busy += 1;
    while (waiting.length) {
      await send(waiting.shift());
      counts.done += 1;
      tell();
    }
    busy -= 1;
    if (!busy) Object.assign(counts, none);
  }

  function add(files, source = "page") {
    failures.replaceChildren();
    const most = Number(form.dataset.files);
    const large = Number(form.dataset.megabytes) * 1e6;
    if (files.length > most) notice(`${files.length} images: the first ${most} are taken; drop the others afterwards.`, "error");
    for (const file of [...files].slice(0, most)) {
      const name = file.webkitRelativePath || file.name;
      if (name.split("/").pop().startsWith(".")) continue; // what a file manager leaves in folders
      counts.total += 1;
      const unfit = file.size > large ? `is larger than ${form.dataset.megabytes} MB; make it smaller.`
        : !file.size && "is empty, or a folder; choose the images in it.";
      if (unfit) {
        fail(name, unfit);
        counts.done += 1;
      } else waiting.push({ file, name, source, key: unique() });
    }
    tell();
    if (!busy && !waiting.length) Object.assign(counts, none);
    while (busy < 2 && waiting.length > busy) work();
  }

  const looks = (file) => file.type.startsWith("image/") || /\.(tiff?|bmp|webp)$/i.test(file.name);
  for (const id of ["files", "folder"]) {
    const input = document.getElementById(id);
    input.addEventListener("change", () => {
      const files = [...input.files]; // of a folder, what is no image by its name is nobody's wish
      const chosen = id === "folder" ? files.filter(looks) : files;
      add(chosen);
      if (chosen.length < files.length) notice(`${files.length - chosen.length} other files of the folder are left out.`);
      input.value = "";
    });
  }
  form.addEventListener("submit", (event) => event.preventDefault());

  // A folder that is dropped is walked through.
  async function walk(entry) {
    if (entry.isFile) {
      const file = await new Promise((done, failed) => entry.file(done, failed));
      return [Object.defineProperty(file, "webkitRelativePath", { value: entry.fullPath.slice(1) })];
    }
    const reader = entry.createReader();
    const found = [];
    for (;;) {
      const some = await new Promise((done, failed) => reader.readEntries(done, failed));
      if (!some.length) break;
      for (const inner of some) found.push(...await walk(inner));
    }
    return found;
  }
  for (const kind of ["dragenter", "dragover"]) {
    addEventListener(kind, (event) => { event.preventDefault(); form.classList.add("over"); });
  }
  addEventListener("dragleave", (event) => { if (!event.relatedTarget) form.classList.remove("over"); });
  addEventListener("drop", async (event) => {
    event.preventDefault();
    form.classList.remove("over");
    const entries = [...event.dataTransfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
    const files = entries.some((entry) => entry.isDirectory)
      ? (await Promise.all(entries.map(walk))).flat().filter(looks) : event.dataTransfer.files;
    add(files);
  });
  addEventListener("paste", (event) => { if (event.clipboardData.files.length) add(event.clipboardData.files); });

  // What others, a watched folder or another page send.
  when("verdict", (ref) => show(ref).catch(() => {}));

  const camera = document.getElementById("camera");
  const video = camera.querySelector("video");
  let timer = 0;
  const shoot = async () => {
    const canvas = new OffscreenCanvas(video.videoWidth, video.videoHeight);
    canvas.getContext("2d").drawImage(video, 0, 0);
    const blob = await canvas.convertToBlob({ type: "image/png" });
    const time = new Date().toISOString().slice(0, 19).replaceAll(":", "-");
    add([new File([blob], `camera-${time}.png`)], "webcam");
  };
  const stop = () => {
    clearInterval(timer);
    for (const track of video.srcObject?.getTracks() ?? []) track.stop();
    camera.hidden = true;
  };
  document.getElementById("webcam").addEventListener("click", async () => {
    try {
      video.srcObject = await navigator.mediaDevices.getUserMedia({ video: { width: { ideal: 1920 } } });
      camera.hidden = false;
    } catch (cause) {
      notice(`The camera cannot be used (${cause.message ?? cause}); connect one, and allow it in the browser.`, "error");
    }
  });
  document.getElementById("shoot").addEventListener("click", shoot);
  document.getElementById("close").addEventListener("click", stop);
  document.getElementById("repeat").addEventListener("change", (event) => {
    clearInterval(timer);
    if (event.target.checked) timer = setInterval(() => { if (!waiting.length) shoot(); }, 1000);
  });
}
