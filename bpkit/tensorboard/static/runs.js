// The runs there are: which are shown, in which colour, and what the verdict on each is.

import { h, styled } from "./dom.js";
import { badge } from "./verdict.js";

const AT_FIRST = 2; // runs that are shown until some are chosen
const COLOURS = 8; // `--run-0` and on, in style.css

export class Runs {
  /** `onChange()` is called when a run is shown or left out. */
  constructor(onChange) {
    this.onChange = onChange;
    this.all = [];
    this.chosen = null; // names; null until there are runs
    this.colours = new Map(); // name → place of its colour
    this.items = new Map(); // name → its parts in the list
    this.verdicts = new Map(); // name → findings by severity
    this.list = h("div", { class: "picker" });
    this.element = h("section", {}, h("h2", {}, "Runs"), this.list);
  }

  get shown() {
    return this.all.filter((run) => this.chosen.has(run.name));
  }

  get statistics() {
    return [...new Set(this.all.flatMap((run) => run.columns))];
  }

  /** Take the server's list over. */
  update(runs) {
    this.all = runs;
    if (!runs.length) return;
    const latest = runs.toSorted((a, b) => b.written - a.written).slice(0, AT_FIRST);
    this.chosen ??= new Set(latest.map((run) => run.name));
    const listed = JSON.stringify(runs.map((run) => [run.name, run.problems]));
    if (listed !== this.listed) {
      this.listed = listed;
      this.items.clear();
      this.list.replaceChildren(...runs.map((run) => this.item(run)));
      this.judge(this.verdicts);
    }
    this.paint();
  }

  item(run) {
    const box = h("input", { type: "checkbox", checked: this.chosen.has(run.name) });
    box.addEventListener("change", () => {
      this.chosen[box.checked ? "add" : "delete"](run.name);
      this.onChange();
    });
    const [dot, verdict] = [h("i", { class: "dot" }), h("span", { class: "verdicts" })];
    this.items.set(run.name, { dot, verdict });
    const problems = run.problems.map((problem) => h("small", { class: "problem" }, problem));
    return h("label", { title: run.name }, box, dot, h("span", { class: "name" }, run.name, ...problems), verdict);
  }

  /** A run that is shown keeps its colour; one that comes gets the colour that the fewest have. */
  paint() {
    for (const name of this.colours.keys()) if (!this.shown.some((run) => run.name === name)) this.colours.delete(name);
    for (const { name } of this.shown) {
      if (this.colours.has(name)) continue;
      const uses = new Array(COLOURS).fill(0);
      for (const place of this.colours.values()) uses[place] += 1;
      this.colours.set(name, uses.indexOf(Math.min(...uses)));
    }
    for (const run of this.all) {
      const place = this.colours.get(run.name);
      run.colour = place === undefined ? "var(--line)" : `var(--run-${place})`;
      styled(this.items.get(run.name).dot, { background: run.colour });
    }
  }

  /** Write the verdicts, findings by severity of each run, beside the names. */
  judge(verdicts) {
    this.verdicts = verdicts;
    for (const [name, { verdict }] of this.items) {
      verdict.replaceChildren(...[badge(verdicts.get(name))].filter(Boolean));
    }
  }
}
