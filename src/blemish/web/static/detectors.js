// When somebody promotes or brings in a version, the page is loaded again, but not under the hands of who fills in a form.
import { notice, when } from "./app.js";

const again = () => {
  if (document.activeElement?.closest("form")) notice("The versions have changed; load the page again to see them.");
  else location.reload();
};
for (const kind of ["promotion", "detector"]) when(kind, again);
