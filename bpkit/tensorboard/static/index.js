// The tab Gradients: what is chosen, what is fetched, and when.

import { fetchFindings, fetchLayer, fetchMap, fetchRuns } from "./api.js";
import { RUNS, Scale } from "./colours.js";
import { h, styled } from "./dom.js";
import { Findings } from "./findings.js";
import { LayerPanel } from "./layer.js";
import { legend } from "./legend.js";
import { HeatMap } from "./map.js";
import { followTheme } from "./theme.js";

const EVERY = 5000; // milliseconds, which is how often TensorBoard itself reads the files
const AT_FIRST = 2; // runs that are shown until some are chosen
const HELP = `import bpkit

watcher = bpkit.watch(model, optimizer, logdir="runs/a")   # one line before the loop
# or, for any script, with no edit:   bpkit watch train.py`;

class Page {
  constructor() {
    this.runs = [];
    this.chosen = null; // names; null until there are runs
    this.statistic = null;
    this.match = "";
    this.layer = null; // { row, name }
    this.maps = new Map(); // run → HeatMap
    this.held = new Map(); // run → what was fetched, and for which question
    this.asked = 0;
    this.build();
  }

  build() {
    this.select = h("select", { id: "statistic" });
    this.select.addEventListener("change", () => this.change({ statistic: this.select.value }));
    this.filter = h("input", { type: "search", id: "filter", placeholder: "part of a name" });
    this.filter.addEventListener("input", () => this.change({ match: this.filter.value }));
    this.live = h("button", { type: "button", "aria-pressed": "true", onclick: () => this.pause() }, "Live");
    this.status = h("span", { class: "status", role: "status" });
    this.picker = h("div", { class: "picker" });
    this.findings = new Findings((run, finding) => {
      for (const [name, map] of this.maps) map.mark(name === run ? finding : null);
    });
    this.legend = h("div", { class: "legend" });
    this.grid = h("div", { class: "maps" });
    this.panel = new LayerPanel(
      (row, name) => this.open(row, name),
      () => this.change({ layer: null }),
    );
    this.empty = h("section", { class: "empty", hidden: true });
    this.empty.append(
      h("h2", {}, "No watched run here"),
      h("p", {}, "Nothing in this log directory was written by bpkit's watch. Watch a run, and start TensorBoard on its directory:"),
      h("pre", {}, HELP),
    );
    const controls = h(
      "header",
      { class: "controls" },
      h("label", { for: "statistic" }, "Statistic", this.select),
      h("label", { for: "filter" }, "Layers", this.filter),
      this.live,
      this.status,
    );
    this.side = h("aside", {}, h("section", {}, h("h2", {}, "Runs"), this.picker), this.findings.element);
    this.main = h("main", {}, controls, this.legend, this.grid, this.panel.element);
    this.body = h("div", { class: "page", hidden: true }, this.side, this.main);
    document.body.append(this.empty, this.body);
  }

  /** Take a choice of the user's over, and show it. */
  change(choice) {
    Object.assign(this, choice);
    if (choice.layer === null) this.panel.hide();
    return this.refresh();
  }

  async open(row, name = row[0]) {
    await this.change({ layer: { row, name } });
    this.panel.element.scrollIntoView({ block: "nearest", behavior: "smooth" });
  }

  pause() {
    this.paused = !this.paused;
    this.live.setAttribute("aria-pressed", String(!this.paused));
    this.live.textContent = this.paused ? "Paused" : "Live";
    if (!this.paused) this.refresh();
  }

  /** Fetch what has changed, and draw it at once when all of it is there. */
  async refresh() {
    const turn = ++this.asked;
    this.waiting = true;
    try {
      this.runs = await fetchRuns();
      this.list();
      const shown = this.shown();
      await Promise.all(shown.map((run) => this.fetch(run)));
      if (turn !== this.asked) return; // another choice was made meanwhile
      this.draw(shown);
      this.status.textContent = "";
    } catch (error) {
      if (turn === this.asked) this.status.textContent = `Not up to date: ${error.message}`;
    } finally {
      if (turn === this.asked) this.waiting = false;
    }
  }

  /** The runs there are, as check boxes, and their statistics. */
  list() {
    this.empty.hidden = this.runs.length > 0;
    this.body.hidden = !this.runs.length;
    if (!this.runs.length) return;
    const latest = this.runs.toSorted((a, b) => b.written - a.written).slice(0, AT_FIRST);
    this.chosen ??= new Set(latest.map((run) => run.name));
    this.runs.forEach((run, index) => (run.colour = RUNS[index % RUNS.length]));
    const names = JSON.stringify(this.runs.map((run) => [run.name, run.problems]));
    if (names !== this.listed) this.picker.replaceChildren(...this.runs.map((run) => this.box(run)));
    this.listed = names;
    const columns = [...new Set(this.runs.flatMap((run) => run.columns))];
    if (!columns.includes(this.statistic)) this.statistic = columns[0] ?? "";
    if (columns.join("\n") !== this.columns) {
      this.select.replaceChildren(...columns.map((name) => h("option", { value: name }, name)));
      this.columns = columns.join("\n");
    }
    this.select.value = this.statistic;
  }

  box(run) {
    const box = h("input", { type: "checkbox", checked: this.chosen.has(run.name) });
    box.addEventListener("change", () => {
      this.chosen[box.checked ? "add" : "delete"](run.name);
      this.refresh();
    });
    const dot = styled(h("i", { class: "dot" }), { background: run.colour });
    const problems = run.problems.map((problem) => h("small", { class: "problem" }, problem));
    return h("label", { title: run.name }, box, dot, h("span", {}, run.name, ...problems));
  }

  shown() {
    return this.runs.filter((run) => this.chosen.has(run.name));
  }

  async fetch(run) {
    const held = this.held.get(run.name) ?? {};
    this.held.set(run.name, held);
    const map = this.mapOf(run.name);
    const query = { statistic: this.statistic, match: this.match, ...map.room };
    const layer = this.layer?.name ?? null;
    const keep = async (what, question, answer) => {
      const asked = `${run.version}\n${JSON.stringify(question)}`;
      if (held[what]?.asked !== asked) held[what] = { asked, answer: await answer() };
    };
    await Promise.all([
      keep("map", query, () => fetchMap(run.name, query)),
      keep("findings", null, () => fetchFindings(run.name)),
      keep("layer", layer, () => (layer === null ? null : fetchLayer(run.name, layer).catch(() => null))),
    ]);
  }

  mapOf(name) {
    if (!this.maps.has(name)) this.maps.set(name, new HeatMap((row) => this.open(row)));
    const map = this.maps.get(name);
    if (!map.element.isConnected) this.grid.append(map.element);
    return map;
  }

  draw(shown) {
    for (const [name, map] of this.maps) {
      if (!shown.some((run) => run.name === name)) map.element.remove();
    }
    const answers = shown.map((run) => ({ run, ...this.held.get(run.name) }));
    const maps = answers.map(({ map }) => map.answer);
    const scale = new Scale(maps);
    for (const { run, map } of answers) {
      const element = this.mapOf(run.name);
      if (this.grid.children[shown.indexOf(run)] !== element.element) this.grid.append(element.element);
      element.show(run, map.answer, scale);
    }
    const binned = maps.some((map) => map.rows.length - 1 < map.layers.length || map.steps.length < map.samples);
    const kind = { log: "geometric mean", signed: "mean", share: "largest value" }[scale.kind];
    this.legend.replaceChildren(...legend(this.statistic, scale, binned ? `a cell is the ${kind} of several` : ""));
    this.legend.hidden = !shown.length;
    this.findings.show(answers.map(({ run, findings }) => ({ ...run, version: "", step: 0, written: 0, findings: findings.answer })));
    const layers = answers.filter(({ layer }) => layer.answer).map(({ run, layer }) => ({ run, layer: layer.answer }));
    if (this.layer) this.panel.show(this.layer.row, this.layer.name, layers);
  }

  start() {
    this.refresh();
    setInterval(() => this.paused || this.waiting || document.hidden || this.refresh(), EVERY);
    let waiting;
    let width = null;
    new ResizeObserver(([{ contentRect }]) => {
      if (width !== null && width !== contentRect.width) {
        clearTimeout(waiting);
        waiting = setTimeout(() => this.refresh(), 150);
      }
      width = contentRect.width || null; // of a hidden page there is nothing to draw anew
    }).observe(this.grid);
  }
}

/** TensorBoard calls this once the module is loaded. */
export function render() {
  document.head.append(h("link", { rel: "stylesheet", href: new URL("./style.css", import.meta.url) }));
  followTheme();
  new Page().start();
}
