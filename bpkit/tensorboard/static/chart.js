// Small drawings of one layer: a statistic over the steps, and how its gradients are distributed.

import { Scale } from "./colours.js";
import { h, short, styled, svg } from "./dom.js";

const [WIDE, TALL] = [280, 118];
const EDGE = { left: 46, right: 10, top: 10, bottom: 18 };

const LATEST = "the latest logged; earlier ones are not shown";

const numbers = (values) => values.map((value) => (value === null ? null : Number(value.replace?.("inf", "Infinity") ?? value)));

function frame(title, label, ...inside) {
  const drawing = svg("svg", { viewBox: `0 0 ${WIDE} ${TALL}`, role: "img", "aria-label": label }, ...inside);
  return h("figure", {}, h("figcaption", {}, title), drawing);
}

const text = (x, y, anchor, words) => svg("text", { x, y, "text-anchor": anchor }, words);

function axes(low, high) {
  const [bottom, right] = [TALL - EDGE.bottom, WIDE - EDGE.right];
  return [
    svg("path", { class: "axis", d: `M${EDGE.left} ${EDGE.top}V${bottom}H${right}` }),
    text(EDGE.left, TALL - 5, "start", low),
    text(right, TALL - 5, "end", high),
  ];
}

/** Curves of one statistic. `series` are objects with `colour`, `run`, `scale`, `steps` and `values`. */
export function curve(name, series) {
  const read = series.map((each) => ({ ...each, values: numbers(each.values) }));
  const shown = (value, kind) => value !== null && Number.isFinite(value) && (kind !== "log" || value > 0);
  const maps = read.map(({ scale, values }) => {
    const finite = values.filter((value) => shown(value, scale));
    return { scale, range: finite.length ? [Math.min(...finite), Math.max(...finite)] : null };
  });
  const scale = new Scale(maps);
  const all = read.flatMap((each) => each.steps);
  const [first, last] = [Math.min(...all), Math.max(...all)];
  const x = (step) => EDGE.left + ((step - first) / Math.max(1, last - first)) * (WIDE - EDGE.left - EDGE.right);
  const y = (value) => TALL - EDGE.bottom - scale.place(value) * (TALL - EDGE.top - EDGE.bottom);
  const inside = axes(first.toLocaleString("en"), last.toLocaleString("en"));
  if (!scale.empty) {
    inside.push(text(EDGE.left - 4, EDGE.top + 4, "end", short(scale.high)));
    inside.push(text(EDGE.left - 4, TALL - EDGE.bottom, "end", short(scale.low)));
  }
  for (const { colour, run, steps, values } of read) {
    let path = "";
    let drawing = false;
    values.forEach((value, index) => {
      const here = shown(value, scale.kind);
      if (here) path += `${drawing ? "L" : "M"}${x(steps[index]).toFixed(1)} ${y(value).toFixed(1)}h0`;
      else if (value !== null) inside.push(odd(x(steps[index]), value, colour, steps[index]));
      drawing = here;
    });
    inside.push(svg("path", { class: "curve", d: path, stroke: colour }, svg("title", {}, run)));
  }
  return frame(name, `${name} from step ${first} to ${last}`, ...inside);
}

/** A cross on top for what is not finite, a ring below for the zero that a logarithm has no place for. */
function odd(x, value, colour, step) {
  const said = svg("title", {}, `${short(value)} at step ${step}`);
  if (value === 0) return svg("circle", { class: "zero", cx: x, cy: TALL - EDGE.bottom, r: 2, stroke: colour }, said);
  return svg("path", { class: "cross", d: `M${x - 3} 3l6 6m0 -6l-6 6`, stroke: colour }, said);
}

/** Counts of |∂L/∂W| by size. */
export function histogram(run, colour, { step, bins, counts }) {
  const read = numbers(counts).map((value) => value ?? 0);
  const most = Math.max(1, ...read.filter(Number.isFinite));
  const each = (WIDE - EDGE.left - EDGE.right) / bins.length;
  const bars = read.map((value, index) => {
    const tall = value > 0 ? Math.max(1, (value / most) * (TALL - EDGE.top - EDGE.bottom)) : 0;
    const box = { x: EDGE.left + index * each, y: TALL - EDGE.bottom - tall, width: each - 0.5, height: tall };
    return svg("rect", { ...box, fill: colour }, svg("title", {}, `${bins[index]}: ${short(value)}`));
  });
  const decades = bins.flatMap((bin, index) => {
    const power = /^1e(-?\d+)$/.exec(bin)?.[1];
    if (!["-8", "-4", "0"].includes(power)) return [];
    return [text(EDGE.left + index * each, TALL - 5, "middle", power === "0" ? "1" : bin.replace("-", "−"))];
  });
  const ends = [text(EDGE.left + each / 2, TALL - 5, "end", "0"), text(WIDE - 2, TALL - 5, "end", "not finite")];
  const largest = text(EDGE.left - 4, EDGE.top + 4, "end", short(most));
  const line = axes("", "");
  const title = h("span", {}, styled(h("i", { class: "dot" }), { background: colour }), `|∂L/∂W| at step ${step}`, h("small", {}, LATEST));
  return frame(title, `Histogram of the gradients of ${run} at step ${step}`, ...line, largest, ...decades, ...ends, ...bars);
}
