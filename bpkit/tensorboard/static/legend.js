// The scale with its numbers, and what the colours outside it mean.

import { INF, NAN, ZERO, hatch } from "./colours.js";
import { h, short, styled } from "./dom.js";

function swatch(text, paint) {
  const canvas = h("canvas", { width: 18, height: 12, "aria-hidden": "true" });
  const pen = canvas.getContext("2d");
  pen.fillStyle = paint(pen);
  pen.fillRect(0, 0, 18, 12);
  return h("span", { class: "swatch" }, canvas, text);
}

/** `notes` are lines about this map, or none. */
export function legend(statistic, scale, notes) {
  const bar = styled(h("div", { class: "bar" }), { background: scale.gradient() });
  const ticks = scale.ticks().map((value) =>
    styled(h("span", { class: "tick" }, short(value)), { left: `${100 * scale.place(value)}%` }),
  );
  return [
    h("strong", {}, statistic),
    h("div", { class: "scale" }, bar, h("div", { class: "ticks" }, ...(scale.empty ? [] : ticks))),
    h("span", { class: "kind" }, { log: "logarithmic", share: "share, linear", signed: "linear" }[scale.kind]),
    scale.kind === "log" ? swatch("exactly 0", () => `rgb(${ZERO})`) : null,
    swatch("NaN", (pen) => hatch(pen, NAN, false)),
    swatch("infinite", (pen) => hatch(pen, INF, true)),
    swatch("blank: not measured", () => "transparent"),
    ...notes.map((note) => h("span", { class: "kind" }, note)),
  ].filter(Boolean);
}
