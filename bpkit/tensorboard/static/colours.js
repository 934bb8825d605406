// Which colour a value has. Viridis and PuOr keep their order for every kind of colour vision and in grey.

const VIRIDIS = ["440154", "482878", "3e4989", "31688e", "26828e", "1f9e89", "35b779", "6ece58", "b5de2b", "fde725"];
const PUOR = ["2d004b", "542788", "8073ac", "b2abd2", "e4e2ec", "f7f7f7", "fbe3c4", "fdb863", "e08214", "b35806", "7f3b08"];
const DECADES = 16; // of a logarithmic scale at most: below lies what float32 rounds away beside the largest

const ROUNDED = 1e-6; // decades that float32 may be away from a power of ten

export const ZERO = [150, 150, 150];
export const NAN = [204, 31, 58];
export const INF = [255, 140, 0];

const css = ([r, g, b]) => `rgb(${r} ${g} ${b})`;

function table(stops) {
  const colours = stops.map((stop) => [0, 2, 4].map((place) => parseInt(stop.slice(place, place + 2), 16)));
  return Array.from({ length: 256 }, (_, index) => {
    const at = (index / 255) * (colours.length - 1);
    const low = Math.min(Math.floor(at), colours.length - 2);
    return colours[low].map((value, channel) => Math.round(value + (at - low) * (colours[low + 1][channel] - value)));
  });
}

const TABLES = { log: table(VIRIDIS), share: table(VIRIDIS), signed: table(PUOR) };

/** One scale for all maps that are shown, so that a colour means the same on each. */
export class Scale {
  constructor(maps) {
    const kinds = maps.map((map) => map.scale);
    this.kind = kinds.includes("signed") ? "signed" : (kinds[0] ?? "log");
    const ranges = maps.map((map) => map.range).filter(Boolean);
    this.empty = ranges.length === 0;
    let low = Math.min(...ranges.map((range) => range[0]));
    let high = Math.max(...ranges.map((range) => range[1]));
    if (this.kind === "share") [low, high] = [0, 1];
    else if (this.kind === "signed") [low, high] = [-1, 1].map((side) => side * Math.max(-low, high));
    else low = Math.max(low, high / 10 ** DECADES);
    if (low === high) [low, high] = this.kind === "log" ? [low / 3, high * 3] : [low - 1, high + 1];
    this.low = low;
    this.high = high;
    this.colours = TABLES[this.kind];
  }

  /** From 0 to 1. */
  place(value) {
    const at =
      this.kind === "log"
        ? Math.log(value / this.low) / Math.log(this.high / this.low)
        : (value - this.low) / (this.high - this.low);
    return Math.min(1, Math.max(0, at));
  }

  /** Of a finite value; what is not finite is hatched. */
  colour(value) {
    if (this.kind === "log" && value <= 0) return ZERO;
    return this.colours[Math.round(255 * this.place(value))];
  }

  /** Values that the legend writes. */
  ticks() {
    if (this.kind !== "log") return [0, 1, 2, 3, 4].map((part) => this.low + (part / 4) * (this.high - this.low));
    const [first, last] = [Math.ceil(Math.log10(this.low) - ROUNDED), Math.floor(Math.log10(this.high) + ROUNDED)];
    const every = Math.max(1, Math.ceil((last - first) / 4));
    const decades = [];
    for (let decade = first; decade <= last; decade += every) decades.push(Number(`1e${decade}`));
    return decades.length > 1 ? decades : [this.low, this.high];
  }

  gradient() {
    return `linear-gradient(to right, ${this.colours.filter((_, index) => index % 15 === 0).map(css).join(", ")})`;
  }
}

/** Strokes over a colour, so that NaN (/) and infinity (×) are told apart without it. */
export function hatch(context, colour, crossed) {
  const tile = document.createElement("canvas");
  tile.width = tile.height = 6;
  const pen = tile.getContext("2d");
  pen.fillStyle = css(colour);
  pen.fillRect(0, 0, 6, 6);
  pen.strokeStyle = crossed ? "#000" : "#fff";
  pen.lineWidth = 1.2;
  const strokes = [[-1, 7, 7, -1], [-1, 1, 1, -1], [5, 7, 7, 5]];
  if (crossed) strokes.push([-1, -1, 7, 7]);
  for (const [x, y, right, bottom] of strokes) {
    pen.beginPath();
    pen.moveTo(x, y);
    pen.lineTo(right, bottom);
    pen.stroke();
  }
  return context.createPattern(tile, "repeat");
}
