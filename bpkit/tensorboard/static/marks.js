// Where findings lie on a map: all of them in the gutters beside and below it, the chosen one as an outline.

import { svg } from "./dom.js";
import { SIGN } from "./verdict.js";

const LEAST = 4; // pixels of a mark, so that one of a single cell among thousands is seen
const LANE = 5; // pixels of a gutter for each severity

/** Rows that have one of the layers; of a statistic that none of them has, the rows before their places. */
function rowsOf(map, finding) {
  const rows = [...map.rows.keys()].slice(0, -1);
  const named = new Set(finding.layers);
  const hit = rows.filter((row) => map.layers.slice(map.rows[row], map.rows[row + 1]).some((name) => named.has(name)));
  if (named.size === 0) return { hit: rows };
  if (hit.length) return { hit };
  const places = finding.layers.filter((name) => Object.hasOwn(map.aside, name)).map((name) => map.aside[name]);
  const near = new Set(places.map((place) => map.rows.findLastIndex((start) => start <= place)));
  return { hit: [...near].sort((a, b) => a - b), beside: true };
}

/** The same as top and height of each stretch of rows, in pixels. */
function stretches(map, finding, tall) {
  const rows = map.rows.length - 1;
  const { hit, beside } = rowsOf(map, finding);
  const groups = [];
  for (const row of hit) {
    if (groups.at(-1)?.[1] === row - 1) groups.at(-1)[1] = row;
    else groups.push([row, row]);
  }
  const sized = groups.map(([top, bottom]) => [(top / rows) * tall, Math.max(LEAST, ((bottom + 1 - top) / rows) * tall)]);
  return { sized, beside };
}

/** Left end and width of the steps at which it was seen, in pixels. */
function span(map, finding, wide) {
  const columns = map.steps.length;
  let first = map.steps.findIndex(([, last]) => last >= finding.step);
  let last = map.steps.findLastIndex(([start]) => start <= finding.last_step);
  if (first < 0) first = columns - 1; // seen after the last sample that is kept
  if (last < first) last = first; // seen between two of them
  const left = (first / columns) * wide;
  return [left, Math.max(LEAST, ((last + 1) / columns) * wide - left)];
}

/** Rectangles around the layers and steps of a finding; one without layers is about all of them. */
export function outlines(map, finding, { wide, tall }) {
  const { sized, beside } = stretches(map, finding, tall);
  const [left, width] = span(map, finding, wide);
  return sized.flatMap(([top, height]) => {
    const box = { x: left + 1, y: top + 1, width: width - 2, height: height - 2 };
    return [svg("rect", { ...box, class: "halo" }), svg("rect", { ...box, class: beside ? "outline beside" : "outline" })];
  });
}

/** Findings that have a place among the layers; one of the whole model has none. */
const placed = (findings) => findings.filter((each) => each.layers.length);
const lanes = (findings) => Object.keys(SIGN).filter((severity) => findings.some((each) => each.severity === severity));

/** Pixels that the gutters take beside a map and below it. */
export const gutters = (findings) => ({ beside: lanes(placed(findings)).length * LANE, below: lanes(findings).length * LANE });

/** Marks of the layers of all findings, to stand beside the map, and of their steps, to stand below it. */
export function marks(map, findings, { wide, tall }, onChoose) {
  const mark = (finding, d) =>
    svg(
      "path",
      { class: `gutter-mark ${finding.severity}`, d, onclick: () => onChoose(finding) },
      svg("title", {}, `${finding.kind}: ${finding.where}, ${finding.since}`),
    );
  const lane = (finding, among) => lanes(among).indexOf(finding.severity) * LANE;
  const thick = LANE - 1;
  const layers = placed(findings).flatMap((finding) => {
    const { sized } = stretches(map, finding, tall);
    const x = lane(finding, placed(findings));
    return sized.length ? [mark(finding, sized.map(([top, height]) => `M${x} ${top}h${thick}v${height}h${-thick}z`).join(""))] : [];
  });
  const steps = findings.map((finding) => {
    const [left, width] = span(map, finding, wide);
    return mark(finding, `M${left} ${lane(finding, findings)}h${width}v${thick}h${-width}z`);
  });
  return { layers, steps };
}
