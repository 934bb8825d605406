// Elements and numbers. Names of runs and layers are anybody's text: they go through textContent alone.

const SVG = "http://www.w3.org/2000/svg";

function filled(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value != null) node.setAttribute(name, value);
  }
  node.append(...children.filter((each) => each != null)); // a string becomes a text node
  return node;
}

export const h = (tag, attributes = {}, ...children) =>
  filled(document.createElement(tag), attributes, children);

export const svg = (tag, attributes = {}, ...children) =>
  filled(document.createElementNS(SVG, tag), attributes, children);

/** Set styles one by one: the page's policy forbids style attributes in markup, not this. */
export function styled(node, styles) {
  for (const [name, value] of Object.entries(styles)) node.style.setProperty(name, value);
  return node;
}

/** A number in few characters. */
export function short(value) {
  if (value === 0) return "0";
  if (!Number.isFinite(value)) return Number.isNaN(value) ? "NaN" : value > 0 ? "Inf" : "−Inf";
  const size = Math.abs(value);
  const text = size >= 0.001 && size < 1e5 ? String(Number(value.toPrecision(3))) : value.toExponential(1);
  return text.replace("e+", "e").replace(".0e", "e").replaceAll("-", "−");
}

export const count = (number, noun) => `${number.toLocaleString("en")} ${noun}${number === 1 ? "" : "s"}`;

/** The end of a name tells layers apart: what does not fit is left out in front, by whole parts if it can be. */
export function tail(name, length) {
  if (name.length <= length) return name;
  const end = name.slice(1 - length);
  const dot = end.indexOf(".");
  return `…${dot >= 0 && dot < length / 2 ? end.slice(dot + 1) : end}`;
}
