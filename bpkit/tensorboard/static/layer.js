// One layer: all its statistics, and its histogram, in every run that is shown.

import { curve, histogram } from "./chart.js";
import { h, styled } from "./dom.js";

export class LayerPanel {
  constructor(onPick, onClose) {
    this.onPick = onPick;
    this.title = h("h2", { tabindex: "-1" });
    this.pick = h("select", { "aria-label": "Layer of this row" });
    this.pick.addEventListener("change", () => onPick(this.row, this.pick.value));
    this.charts = h("div", { class: "charts" });
    const close = h("button", { type: "button", "aria-label": "Close the layer", onclick: onClose }, "Close");
    this.element = h("section", { class: "layer", hidden: true }, h("header", {}, this.title, this.pick, close), this.charts);
  }

  /** `row` are the names that share the row of the map, `found` a run with its answer each. */
  show(row, name, found) {
    this.row = row;
    this.element.hidden = false;
    const kind = found.map(({ layer }) => layer.class).find(Boolean);
    this.title.replaceChildren(name || "(the model itself)", kind ? h("small", {}, kind) : "");
    this.pick.hidden = row.length < 2;
    this.pick.replaceChildren(...row.map((each) => h("option", { value: each, selected: each === name }, each)));
    const names = [...new Set(found.flatMap(({ layer }) => layer.curves.map((each) => each.name)))];
    const curves = names.map((statistic) =>
      curve(
        statistic,
        found.flatMap(({ run, layer }) =>
          layer.curves
            .filter((each) => each.name === statistic)
            .map((each) => ({ ...each, steps: layer.steps, run: run.name, colour: run.colour })),
        ),
      ),
    );
    const histograms = found
      .filter(({ layer }) => layer.histogram)
      .map(({ run, layer }) => histogram(run.name, run.colour, layer.histogram));
    const runs = found.map(({ run }) =>
      h("span", {}, styled(h("i", { class: "dot" }), { background: run.colour }), run.name),
    );
    const drawn = [...histograms, ...curves];
    const none = h("p", { class: "note" }, "Nothing was measured of this layer in the runs that are shown.");
    this.charts.replaceChildren(h("p", { class: "runs" }, ...runs), ...(drawn.length ? drawn : [none]));
  }

  hide() {
    this.element.hidden = true;
  }
}
