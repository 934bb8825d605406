// Findings of the runs that are shown, as a list whose items mark their place on the map.

import { count, h, styled } from "./dom.js";
import { SIGN } from "./verdict.js";

export class Findings {
  /**
   * `onMark(run, finding)` is called with what is to be outlined, with nulls when nothing is, and
   * `onChoose(run)` when a finding of that run has been chosen.
   */
  constructor(onMark, onChoose) {
    this.onMark = onMark;
    this.onChoose = onChoose;
    this.pinned = null;
    this.items = new Map();
    this.list = h("div", { class: "findings" });
    this.element = h("section", {}, h("h2", {}, "Findings"), this.list);
  }

  /** `runs` are objects with `name`, `colour` and `findings`, the server's answer. */
  show(runs) {
    const text = JSON.stringify(runs);
    if (text === this.text) return this.restore(); // rebuilding would take focus and selection away
    this.text = text;
    const focused = document.activeElement?.dataset?.key;
    this.items.clear();
    this.list.replaceChildren(...runs.flatMap((run) => this.run(run, runs.length > 1)));
    if (focused) this.items.get(focused)?.button.focus();
    if (!this.items.has(this.pinned)) this.pinned = null;
    this.restore();
  }

  run(run, several) {
    const { findings, problems, watched } = run.findings;
    const head = several ? h("h3", {}, styled(h("i", { class: "dot" }), { background: run.colour }), run.name) : null;
    const grave = findings.filter((each) => each.severity !== "info");
    const items = h("ul", {}, ...findings.map((finding) => this.item(run, finding)));
    return [
      head,
      grave.length ? null : h("p", { class: watched ? "healthy" : "note" }, verdict(run.findings)),
      findings.length ? items : null,
      ...problems.map((problem) => h("p", { class: "problem" }, problem)),
      watched ? h("p", { class: "note" }, cost(run.findings)) : null,
    ].filter(Boolean);
  }

  item(run, finding) {
    const key = keyOf(run.name, finding);
    const button = h(
      "button",
      { type: "button", class: `finding ${finding.severity}`, "aria-pressed": "false", "data-key": key },
      h("span", { class: "head" }, h("b", {}, `${SIGN[finding.severity]} ${finding.kind}`), h("em", {}, finding.severity)),
      h("span", { class: "where", title: finding.layers.slice(0, 50).join("\n") }, `${finding.where}, ${finding.since}`),
      finding.evidence ? h("span", { class: "evidence" }, finding.evidence) : null,
      finding.advice ? h("span", { class: "advice" }, finding.advice) : null,
    );
    const mark = () => this.onMark(run.name, finding);
    button.addEventListener("mouseenter", mark);
    button.addEventListener("focus", mark);
    button.addEventListener("mouseleave", () => this.restore());
    button.addEventListener("blur", () => this.restore());
    button.addEventListener("click", () => {
      this.pinned = this.pinned === key ? null : key;
      this.restore();
      if (this.pinned) this.onChoose(run.name);
    });
    this.items.set(key, { button, run: run.name, finding });
    return h("li", {}, button);
  }

  /** Choose a finding from elsewhere, and bring it into sight. */
  choose(run, finding) {
    this.pinned = keyOf(run, finding);
    this.restore();
    this.items.get(this.pinned)?.button.scrollIntoView({ block: "nearest" });
  }

  /** Outline what is pinned, or nothing. */
  restore() {
    for (const [key, { button }] of this.items) button.setAttribute("aria-pressed", String(key === this.pinned));
    const held = this.items.get(this.pinned);
    this.onMark(held?.run ?? null, held?.finding ?? null);
  }
}

const keyOf = (run, finding) => `${run}\n${finding.kind}`;

function verdict({ watched, samples, step, finished, findings }) {
  if (!watched) return "No verdict has been written yet.";
  const seen = `${count(samples, "sample")}, to step ${step.toLocaleString("en")}`;
  const also = findings.length ? " at warning or above" : "";
  return `✔ Healthy: no finding${also} in ${seen}${finished ? "." : " so far."}`;
}

function cost({ step, share, finished }) {
  const state = finished ? "finished" : "running";
  return `${state} at step ${step.toLocaleString("en")}; watching took ${(100 * share).toFixed(1)} % of the time`;
}
