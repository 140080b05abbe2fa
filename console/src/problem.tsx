/** Shows an error. */

import type { VortaError } from "@vorta/client";

/** What went wrong, by message, reason and field. */
export function Problem({ error }: { readonly error: VortaError }) {
  return (
    <p class="problem" role="alert">
      <strong>{error.message}</strong>{" "}
      <span class="muted">
        {error.name} · {error.reason}
        {error.field === undefined ? "" : ` · ${error.field}`}
      </span>
    </p>
  );
}
