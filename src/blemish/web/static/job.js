// How far a training is, each second; when it has ended, the page is loaded again.
import { ask, notice } from "./app.js";

const panel = document.getElementById("job");
const bar = panel.querySelector("progress");
const log = document.getElementById("log");
let failed = false;

async function look() {
  try {
    const job = await (await ask(`/jobs/${panel.dataset.job}/progress`)).json();
    failed = false;
    if (!job.alive) return location.reload();
    document.getElementById("stage").textContent = job.total ? `${job.stage}, ${job.done} of ${job.total}` : job.stage;
    bar.max = job.total || 1;
    if (job.total) bar.value = job.done; else bar.removeAttribute("value");
    const end = log.scrollTop + log.clientHeight >= log.scrollHeight - 8;
    if (job.log && log.textContent !== job.log) log.textContent = job.log;
    if (end) log.scrollTop = log.scrollHeight;
  } catch (cause) {
    // The training goes on without the server; it is told once, and asked again.
    if (!failed) notice(cause.message, "error");
    failed = true;
  }
  setTimeout(look, 1000);
}
log.scrollTop = log.scrollHeight;
setTimeout(look, 1000);
