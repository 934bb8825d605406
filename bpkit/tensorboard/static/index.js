// The tab Gradients: what is chosen, what is fetched, and when.

import { fetchFindings, fetchLayer, fetchMap, fetchRuns, fetchVerdicts } from "./api.js";
import { Scale } from "./colours.js";
import { h } from "./dom.js";
import { Findings } from "./findings.js";
import { LayerPanel } from "./layer.js";
import { legend } from "./legend.js";
import { HeatMap } from "./map.js";
import { Runs } from "./runs.js";
import { followTheme } from "./theme.js";
// What the others import: named here, they are asked for together with those and not after them.
import "./chart.js";
import "./marks.js";
import "./verdict.js";

const EVERY = 5000; // milliseconds, which is how often TensorBoard itself reads the files
const HELP = `import bpkit

watcher = bpkit.watch(model, optimizer, logdir="runs/a")   # one line before the loop
# or, for any script, with no edit:   bpkit watch train.py`;

class Page {
  /** `styles` is settled when the style sheet is there. */
  constructor(styles) {
    this.statistic = null;
    this.match = "";
    this.shared = true; // one colour scale for all maps
    this.layer = null; // { row, name }
    this.maps = new Map(); // run → HeatMap
    this.held = new Map(); // run → what was fetched, and for which question
    this.asked = 0;
    this.build();
    // Before there are runs: the browser lays the page out, fonts and all, while it waits for them.
    this.ready = styles.then(() => document.body.append(this.empty, this.body));
  }

  build() {
    this.select = h("select", { id: "statistic" });
    this.select.addEventListener("change", () => this.change({ statistic: this.select.value }));
    this.filter = h("input", { type: "search", id: "filter", placeholder: "part of a name" });
    this.filter.addEventListener("input", () => this.change({ match: this.filter.value }));
    this.live = h("button", { type: "button", "aria-pressed": "true", onclick: () => this.pause() }, "Live");
    this.status = h("span", { class: "status", role: "status" });
    const share = h("input", { type: "checkbox", checked: true });
    share.addEventListener("change", () => this.change({ shared: share.checked }));
    this.share = h("label", {}, share, "One colour scale for all runs");
    this.runs = new Runs(() => this.refresh());
    this.findings = new Findings(
      (run, finding) => {
        for (const [name, map] of this.maps) map.mark(name === run ? finding : null);
      },
      (run) => this.maps.get(run)?.reveal(),
    );
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
      this.share,
      this.live,
      this.status,
    );
    this.side = h("aside", {}, this.runs.element, this.findings.element);
    this.main = h("main", {}, controls, this.legend, this.grid, this.panel.element);
    this.body = h("div", { class: "page" }, this.side, this.main);
  }

  /** Take a choice of the user's over, and show it. */
  change(choice) {
    Object.assign(this, choice);
    if (choice.layer === null) this.panel.hide();
    return this.refresh();
  }

  async open(row, name = row[0]) {
    await this.change({ layer: { row, name } });
    this.panel.element.scrollIntoView({ block: "nearest" });
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
      const [runs] = await Promise.all([fetchRuns(), this.ready]);
      this.list(runs);
      const shown = this.runs.all.length ? this.runs.shown : [];
      const judged = this.judge();
      await Promise.all(shown.map((run) => this.fetch(run)));
      if (turn !== this.asked) return; // another choice was made meanwhile
      this.draw(shown);
      await judged;
      this.status.textContent = "";
    } catch (error) {
      if (turn === this.asked) this.status.textContent = `Not up to date: ${error.message}`;
    } finally {
      if (turn === this.asked) this.waiting = false;
    }
  }

  /** The runs there are, and their statistics. */
  list(runs) {
    this.empty.hidden = runs.length > 0;
    this.body.hidden = !runs.length;
    this.runs.update(runs);
    if (!runs.length) return;
    const columns = this.runs.statistics;
    if (!columns.includes(this.statistic)) this.statistic = columns[0] ?? "";
    if (columns.join("\n") !== this.columns) {
      this.select.replaceChildren(...columns.map((name) => h("option", { value: name }, name)));
      this.columns = columns.join("\n");
    }
    this.select.value = this.statistic;
  }

  async fetch(run) {
    const held = this.held.get(run.name) ?? {};
    this.held.set(run.name, held);
    const map = this.mapOf(run.name);
    const query = { statistic: this.statistic, match: this.match, ...map.room };
    const layer = this.layer?.name ?? null;
    const keep = async (what, version, question, answer) => {
      const asked = `${version}\n${JSON.stringify(question)}`;
      if (held[what]?.asked !== asked) held[what] = { asked, answer: await answer() };
    };
    await Promise.all([
      keep("map", run.version, query, () => fetchMap(run.name, query)),
      keep("findings", run.judged, null, () => fetchFindings(run.name)),
      keep("layer", run.version, layer, () => (layer === null ? null : fetchLayer(run.name, layer).catch(() => null))),
    ]);
  }

  mapOf(name) {
    if (!this.maps.has(name)) this.maps.set(name, this.newMap());
    const map = this.maps.get(name);
    if (!map.element.isConnected) this.grid.append(map.element);
    return map;
  }

  newMap() {
    return new HeatMap(
      (row) => this.open(row),
      (run, finding) => this.findings.choose(run, finding),
    );
  }

  /** Ask for the verdicts on all runs when one has changed; nothing waits for them. */
  async judge() {
    const asked = JSON.stringify(this.runs.all.map((run) => [run.name, run.judged]));
    if (asked === this.judged) return;
    const verdicts = new Map((await fetchVerdicts()).map((each) => [each.run, each]));
    this.judged = asked;
    this.runs.judge(verdicts);
    for (const [name, map] of this.maps) map.judge(verdicts.get(name));
  }

  draw(shown) {
    for (const [name, map] of this.maps) {
      if (!shown.some((run) => run.name === name)) map.element.remove();
    }
    const answers = shown.map((run) => ({ run, ...this.held.get(run.name) }));
    const all = new Scale(answers.map(({ map }) => map.answer));
    this.share.hidden = shown.length < 2;
    const apart = !this.shared && shown.length > 1;
    this.legend.replaceChildren(...(apart ? [] : this.explain(all, answers)));
    this.legend.hidden = apart || !shown.length;
    for (const answer of answers) {
      const { run, map, findings } = answer;
      const element = this.mapOf(run.name);
      if (this.grid.children[shown.indexOf(run)] !== element.element) this.grid.append(element.element);
      const scale = apart ? new Scale([map.answer]) : all;
      element.show(run, map.answer, scale, findings.answer.findings, apart ? this.explain(scale, [answer]) : []);
      element.judge(this.runs.verdicts.get(run.name));
    }
    this.findings.show(answers.map(({ run, findings }) => ({ ...run, version: "", step: 0, written: 0, findings: findings.answer })));
    const layers = answers.filter(({ layer }) => layer.answer).map(({ run, layer }) => ({ run, layer: layer.answer }));
    if (this.layer) this.panel.show(this.layer.row, this.layer.name, layers);
  }

  /** The legend of a scale, and what the cells of these maps are. */
  explain(scale, answers) {
    const maps = answers.map(({ map }) => map.answer);
    const binned = maps.some((map) => map.rows.length - 1 < map.layers.length || map.steps.length < map.samples);
    const kind = { log: "geometric mean", signed: "mean", share: "largest value" }[scale.kind];
    const found = answers.some(({ findings }) => findings.answer.findings.length);
    const notes = [binned && `a cell is the ${kind} of several`, found && "edge bars: findings"];
    return legend(this.statistic, scale, notes.filter(Boolean));
  }

  async start() {
    await this.refresh();
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
  const styles = new Promise((settled) => {
    const href = new URL("./style.css", import.meta.url);
    document.head.append(h("link", { rel: "stylesheet", href, onload: settled, onerror: settled }));
  });
  followTheme();
  new Page(styles).start();
}
