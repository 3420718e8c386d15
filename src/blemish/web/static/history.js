// Tells on the newest page of verdicts that there are newer ones; the list itself stays still while somebody looks.
import { when } from "./app.js";

const newer = document.getElementById("newer");
if (newer) {
  let count = 0;
  when("verdict", () => {
    count += 1;
    newer.hidden = false;
    newer.querySelector("a").textContent = count === 1 ? "1 new verdict: show" : `${count} new verdicts: show`;
  });
}
