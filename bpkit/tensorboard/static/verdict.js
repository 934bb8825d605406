// What was found of a run, in a few signs.

import { h } from "./dom.js";

export const SIGN = { critical: "✖", warning: "▲", info: "●" };

/** How many findings of each severity, or that there is none of them to act on; null without a verdict. */
export function badge(verdict) {
  if (!verdict) return null;
  const found = Object.keys(SIGN).filter((severity) => verdict[severity] > 0);
  const signs = found.map((severity) => h("span", { class: severity }, `${SIGN[severity]} ${verdict[severity]}`));
  const healthy = !verdict.critical && !verdict.warning;
  if (healthy) signs.unshift(h("span", { class: "good" }, "✔ healthy"));
  const said = found.map((severity) => `${verdict[severity]} ${severity}`).join(", ");
  return h("small", { class: "verdict", title: said ? `findings: ${said}` : "no finding" }, ...signs);
}
