// Elements, numbers as text, and numbers out of text.
const SVG = "http://www.w3.org/2000/svg";

function filled(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  // text only ever becomes text: no name in the data is read as markup
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}

function el(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

function svg(tag, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), attributes, children);
}

function say(value) {
  if (value === null || value === undefined) return "–";
  if (typeof value !== "number") return String(value);
  if (Number.isInteger(value)) return Math.abs(value) < 1e4 ? String(value) : value.toLocaleString("en-US");
  const size = Math.abs(value);
  if (size >= 1e6 || size < 1e-4) return value.toExponential(2);
  if (size >= 1000) return Math.round(value).toLocaleString("en-US");
  return size >= 100 ? value.toFixed(1) : size < 0.01 ? String(Number(value.toPrecision(3))) : value.toFixed(3);
}

// Numbers of one column with the same digits behind the point; those with an interval are no counts.
function sayer(values, { counts = true } = {}) {
  const known = values.filter((value) => typeof value === "number");
  const even = (!counts || known.some((value) => !Number.isInteger(value))) && known.every((value) => Math.abs(value) < 100 && (value === 0 || Math.abs(value) >= 0.001));
  return (value) => (even && typeof value === "number" ? value.toFixed(3) : say(value));
}

function bytes(text) {
  return Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0)).buffer;
}

function floats(text) {
  return new Float32Array(bytes(text));
}

// A labelled choice; `options` are texts or [value, text].
function choice(label, options, onchange, { value, wide } = {}) {
  const select = el("select", { onchange: () => onchange(select.value) });
  for (const option of options) {
    const [key, text] = Array.isArray(option) ? option : [option, option];
    select.append(el("option", { value: key }, text));
  }
  if (value !== undefined) select.value = value;
  const node = el("label", { class: wide ? "wide" : null }, label, select);
  return { node, select };
}

function searchField(label, oninput, placeholder = "") {
  const field = el("input", { type: "search", placeholder, oninput: () => oninput(field.value) });
  return { node: el("label", {}, label, field), field };
}

function tick(label, onchange, checked = false) {
  const box = el("input", { type: "checkbox", onchange: () => onchange(box.checked) });
  box.checked = checked;
  return el("label", { class: "tick" }, box, label);
}

function matcher(text) {
  const words = text.toLowerCase().split(/\s+/).filter(Boolean);
  return (name) => words.every((word) => name.toLowerCase().includes(word));
}

// What has to be drawn anew at another size, or whole for paper.
const redraws = [];
const prints = [];
let width = 0;
addEventListener("resize", () => {
  if (innerWidth === width) return;
  width = innerWidth;
  redraws.forEach((draw) => draw());
});
const darkness = matchMedia("(prefers-color-scheme: dark)");
darkness.addEventListener("change", () => redraws.forEach((draw) => draw()));
addEventListener("beforeprint", () => prints.forEach(({ before }) => before()));
addEventListener("afterprint", () => prints.forEach(({ after }) => after()));

function opensForPrint(details, fill = () => {}) {
  let was = false;
  prints.unshift({
    before: () => { was = details.open; details.open = true; fill(); },
    after: () => { details.open = was; },
  });
  return details;
}
