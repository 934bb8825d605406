// Where a finding lies on a map.

import { svg } from "./dom.js";

const LEAST = 4; // pixels of an outline, so that one of a single cell among thousands is seen

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

/** Rectangles around the layers and steps of a finding; one without layers is about all of them. */
export function outlines(map, finding, { wide, tall }) {
  const [rows, columns] = [map.rows.length - 1, map.steps.length];
  const { hit, beside } = rowsOf(map, finding);
  let first = map.steps.findIndex(([, last]) => last >= finding.step);
  let last = map.steps.findLastIndex(([start]) => start <= finding.last_step);
  if (first < 0) first = columns - 1; // seen after the last sample that is kept
  if (last < first) last = first; // seen between two of them
  const groups = [];
  for (const row of hit) {
    if (groups.at(-1)?.[1] === row - 1) groups.at(-1)[1] = row;
    else groups.push([row, row]);
  }
  const left = (first / columns) * wide;
  const width = Math.max(LEAST, ((last + 1) / columns) * wide - left);
  return groups.flatMap(([top, bottom]) => {
    const height = Math.max(LEAST, ((bottom + 1 - top) / rows) * tall);
    const box = { x: left + 1, y: (top / rows) * tall + 1, width: width - 2, height: height - 2 };
    return [svg("rect", { ...box, class: "halo" }), svg("rect", { ...box, class: beside ? "outline beside" : "outline" })];
  });
}
