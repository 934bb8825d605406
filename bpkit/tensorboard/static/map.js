// The heat map of one run: layers downwards, input on top; samples to the right.

import { INF, NAN, hatch } from "./colours.js";
import { count, h, short, styled, svg, tail } from "./dom.js";
import { gutters, marks, outlines } from "./marks.js";
import { badge } from "./verdict.js";

const TALL = 560; // pixels that the rows share
const ROW = 22; // pixels of a row at most
const NAME = 30; // characters of a name
const BESIDE = 230; // pixels that names and margins take of the width at most
const LABEL = 14; // pixels that a label needs

export class HeatMap {
  /** `onLayer(names)` is called with the layers of a row, `onFinding(run, finding)` with a mark's. */
  constructor(onLayer, onFinding) {
    this.onLayer = onLayer;
    this.onFinding = onFinding;
    this.heading = h("h2");
    this.verdict = h("span", { class: "verdicts" });
    this.legend = h("div", { class: "legend", hidden: true });
    this.note = h("p", { class: "note" });
    this.names = h("div", { class: "names" });
    this.canvas = h("canvas", { tabindex: "0", role: "application" });
    this.marks = svg("svg", { class: "marks", "aria-hidden": "true" });
    this.beside = svg("svg", { class: "gutter", "aria-hidden": "true" }); // the list of findings says the same
    this.below = svg("svg", { class: "gutter below", "aria-hidden": "true" });
    this.steps = h("div", { class: "steps", "aria-hidden": "true" });
    this.tip = h("div", { class: "tip", role: "status", hidden: true });
    this.field = h("div", { class: "field" }, this.canvas, this.marks, this.tip);
    this.plot = h("div", { class: "plot" }, this.names, this.field, this.beside, this.below, this.steps);
    this.problems = h("div");
    const head = h("header", {}, this.heading, this.verdict);
    this.element = h("section", { class: "map" }, head, this.note, this.problems, this.legend, this.plot);
    this.cursor = null;
    this.canvas.addEventListener("mousemove", (event) => this.point(this.cellAt(event)));
    this.canvas.addEventListener("mouseleave", () => this.point(null));
    this.canvas.addEventListener("blur", () => this.point(null));
    this.canvas.addEventListener("click", (event) => this.open(this.cellAt(event)));
    this.canvas.addEventListener("keydown", (event) => this.key(event));
  }

  /** How many cells there is room for, known before the names are. */
  get room() {
    return { rows: TALL, columns: Math.max(50, this.element.clientWidth - BESIDE) };
  }

  /** `legend` are elements, none where the page has one for all maps. */
  show(run, map, scale, findings, legend) {
    Object.assign(this, { run, map, scale });
    const [rows, columns] = [map.rows.length - 1, map.steps.length];
    const blank = rows === 0 || columns === 0;
    this.plot.hidden = blank;
    this.heading.replaceChildren(h("i", { class: "dot" }), run.name);
    styled(this.heading.firstChild, { background: run.colour });
    const last = columns ? `, to step ${map.steps[columns - 1][1].toLocaleString("en")}` : "";
    const others = Object.keys(map.aside).length;
    const all = count(map.layers.length + others, "layer");
    const layers = others ? `${map.layers.length.toLocaleString("en")} of ${all}` : all;
    const what = [run.model, layers, count(map.samples, "sample") + last];
    this.note.textContent = blank
      ? map.layers.length
        ? "No sample yet."
        : "No layer of this name."
      : what.filter(Boolean).join(" · ") + (map.measured ? "" : ` · ${map.statistic} was not measured`);
    const unsaid = map.problems.filter((problem) => !run.problems.includes(problem));
    this.problems.replaceChildren(...unsaid.map((problem) => h("p", { class: "problem" }, problem)));
    this.legend.hidden = blank || !legend.length;
    this.legend.replaceChildren(...legend);
    if (blank) return;
    const tall = Math.round(rows * Math.min(ROW, TALL / rows));
    styled(this.field, { height: `${tall}px` });
    styled(this.names, { height: `${tall}px` });
    const { beside, below } = gutters(findings);
    styled(this.beside, { width: `${beside}px`, height: `${tall}px` });
    styled(this.below, { height: `${below}px` });
    this.nameRows(tall / rows);
    this.size = { wide: this.field.clientWidth, tall }; // as wide as the names leave it
    this.nameSteps();
    const drawn = marks(map, findings, this.size, (finding) => this.onFinding(run.name, finding));
    this.beside.replaceChildren(...drawn.layers);
    this.below.replaceChildren(...drawn.steps);
    this.canvas.setAttribute(
      "aria-label",
      `${map.statistic} of ${count(map.layers.length, "layer")} over ${count(map.samples, "sample")} of ` +
        `${run.name}. Arrow keys read the cells, Enter opens a layer.`,
    );
    this.paint();
    this.point(this.cursor && this.cursor.row < rows && this.cursor.column < columns ? this.cursor : null);
  }

  paint() {
    const { cells, absent } = this.map;
    const [rows, columns] = [this.map.rows.length - 1, this.map.steps.length];
    const small = h("canvas", { width: columns, height: rows });
    const pen = small.getContext("2d");
    const image = pen.createImageData(columns, rows);
    const special = [];
    const nothing = Math.fround(absent);
    cells.forEach((value, index) => {
      if (value === nothing) return;
      if (!Number.isFinite(value)) {
        special.push(index);
        return;
      }
      image.data.set(this.scale.colour(value), 4 * index);
      image.data[4 * index + 3] = 255;
    });
    pen.putImageData(image, 0, 0);
    const ratio = window.devicePixelRatio || 1;
    const [wide, tall] = [Math.round(this.size.wide * ratio), Math.round(this.size.tall * ratio)];
    if (this.canvas.width !== wide) this.canvas.width = wide; // which clears it, seen or not
    if (this.canvas.height !== tall) this.canvas.height = tall;
    const main = this.canvas.getContext("2d");
    main.clearRect(0, 0, wide, tall);
    main.imageSmoothingEnabled = false;
    main.drawImage(small, 0, 0, wide, tall);
    const marked = [hatch(main, NAN, false), hatch(main, INF, true)];
    for (const { row, first, last, nan } of stretches(cells, special, columns)) {
      main.fillStyle = marked[nan ? 0 : 1];
      const [left, top] = [Math.floor((first * wide) / columns), Math.floor((row * tall) / rows)];
      const [right, bottom] = [Math.ceil(((last + 1) * wide) / columns), Math.ceil(((row + 1) * tall) / rows)];
      main.fillRect(left, top, right - left, bottom - top);
    }
  }

  nameRows(tall) {
    const names = [];
    for (let row = 0; row < this.map.rows.length - 1; row += Math.ceil(LABEL / tall)) {
      const full = this.layersOf(row);
      const text = tail(full[0], NAME) || "(model)";
      const button = h("button", { type: "button", title: full[0], onclick: () => this.onLayer(full) }, text);
      names.push(styled(button, { top: `${(row + 0.5) * tall}px` }));
    }
    const focused = this.names.contains(document.activeElement) ? document.activeElement.title : null;
    this.names.replaceChildren(...names);
    if (focused !== null) names.find((each) => each.title === focused)?.focus(); // live reload must not take it
    styled(this.names, { width: `${Math.max(...names.map((each) => each.offsetWidth)) + 10}px` });
  }

  nameSteps() {
    const columns = this.map.steps.length;
    const every = Math.max(1, Math.ceil((columns * 64) / this.size.wide));
    const ticks = [];
    for (let column = 0; column < columns; column += every) {
      const text = this.map.steps[column][0].toLocaleString("en");
      ticks.push(styled(h("span", {}, text), { left: `${((column + 0.5) * 100) / columns}%` }));
    }
    this.steps.replaceChildren(...ticks, h("b", {}, "step"));
  }

  layersOf(row) {
    return this.map.layers.slice(this.map.rows[row], this.map.rows[row + 1]);
  }

  cellAt(event) {
    const box = this.canvas.getBoundingClientRect();
    const [rows, columns] = [this.map.rows.length - 1, this.map.steps.length];
    const row = Math.floor(((event.clientY - box.top) / box.height) * rows);
    const column = Math.floor(((event.clientX - box.left) / box.width) * columns);
    return { row: Math.min(rows - 1, Math.max(0, row)), column: Math.min(columns - 1, Math.max(0, column)) };
  }

  /** Say what is under the mouse or the cursor. */
  point(cell) {
    this.cursor = cell;
    this.tip.hidden = !cell;
    if (!cell) return;
    const [rows, columns] = [this.map.rows.length - 1, this.map.steps.length];
    const layers = this.layersOf(cell.row);
    const [first, last] = this.map.steps[cell.column];
    const value = this.map.cells[cell.row * columns + cell.column];
    const more = layers.length > 1 ? ` and ${layers.length - 1} more` : "";
    const when = first === last ? `step ${first}` : `steps ${first} to ${last}`;
    const said = value === Math.fround(this.map.absent) ? "not measured" : short(value);
    this.tip.replaceChildren(
      h("strong", {}, said),
      h("span", {}, tail(layers[0], 48) + more),
      h("span", {}, `${this.map.classes[this.map.rows[cell.row]] || "layer"}, ${when}`),
    );
    const [x, y] = [(cell.column + 0.5) / columns, (cell.row + 0.5) / rows];
    styled(this.tip, {
      left: x < 0.5 ? `calc(${100 * x}% + 14px)` : "auto",
      right: x < 0.5 ? "auto" : `calc(${100 * (1 - x)}% + 14px)`,
      top: y < 0.5 ? `calc(${100 * y}% + 10px)` : "auto",
      bottom: y < 0.5 ? "auto" : `calc(${100 * (1 - y)}% + 10px)`,
    });
  }

  open(cell) {
    if (cell) this.onLayer(this.layersOf(cell.row));
  }

  key(event) {
    const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    const at = this.cursor ?? { row: 0, column: this.map.steps.length - 1 };
    if (event.key === "Enter") this.open(at);
    if (!step) return;
    event.preventDefault();
    const row = Math.min(this.map.rows.length - 2, Math.max(0, at.row + step[0]));
    this.point({ row, column: Math.min(this.map.steps.length - 1, Math.max(0, at.column + step[1])) });
  }

  /** Write the verdict on the run, findings by severity, beside its name. */
  judge(verdict) {
    this.verdict.replaceChildren(...[badge(verdict)].filter(Boolean));
  }

  /** Bring what is outlined into sight. */
  reveal() {
    this.marks.querySelector(".outline")?.scrollIntoView({ block: "nearest" });
  }

  /** Outline the layers and steps of a finding; null takes the outline away. */
  mark(finding) {
    this.marks.replaceChildren(...(finding && !this.plot.hidden ? outlines(this.map, finding, this.size) : []));
  }
}

/** Cells that are not finite, by stretches of one kind in a row: a run that has diverged has little else. */
function stretches(cells, special, columns) {
  const found = [];
  for (const index of special) {
    const [row, column, nan] = [Math.floor(index / columns), index % columns, Number.isNaN(cells[index])];
    const before = found.at(-1);
    if (before?.row === row && before.last === column - 1 && before.nan === nan) before.last = column;
    else found.push({ row, first: column, last: column, nan });
  }
  return found;
}
