// Colour scales of the maps; the same as in the figures of a run.

const SCALES = {
  // weight x skills: 0 to 2, uniform = 1 in the middle
  light: ["#174A7E", "#6FA3D0", "#F6F4EF", "#EFA35C", "#B4540A"],
  dark: ["#8CC1F2", "#41739F", "#2A3038", "#A5662A", "#FFB566"],
  lightShare: ["#F6F4EF", "#6FA3D0", "#174A7E"],
  darkShare: ["#2A3038", "#41739F", "#A8D2FA"],
};
const OVER = { light: "#5E2703", dark: "#FFE3C2" };

function isDark() {
  return darkness.matches;
}

function inks(onPaper) {
  return isDark() && !onPaper
    ? { name: "dark", ink: "#E3E7EB", muted: "#9AA5B1", rule: "#323A44", card: "#1B2027", accent: "#F0A65E" }
    : { name: "light", ink: "#1F2A36", muted: "#66717E", rule: "#D5DAE0", card: "#FFFFFF", accent: "#B4540A" };
}

function mixed(stops, share) {
  const place = Math.min(0.999999, Math.max(0, share)) * (stops.length - 1);
  const [low, rest] = [Math.floor(place), place - Math.floor(place)];
  const channel = (text, i) => parseInt(text.slice(1 + 2 * i, 3 + 2 * i), 16);
  const rgb = [0, 1, 2].map((i) =>
    Math.round(channel(stops[low], i) * (1 - rest) + channel(stops[low + 1], i) * rest));
  return `rgb(${rgb.join(",")})`;
}

const tables = {};
function lookup(name) {
  tables[name] ??= Array.from({ length: 256 }, (_, i) => mixed(SCALES[name], i / 255));
  return tables[name];
}

// Colours of a map's columns, which share a scale unless its kind is a function of the column.
function columnColours({ kind, limit, columns }, theme) {
  const kindOf = typeof kind === "function" ? kind : () => kind;
  const known = {};
  return columns.map((_, c) => (known[kindOf(c)] ??= colourOf(kindOf(c), theme, limit)));
}

// Colour of a value on 0 to 2 (`relative`), 0 to 1 (`share`) or -limit to limit (`signed`).
function colourOf(kind, theme, limit = 1) {
  const table = lookup(kind === "share" ? `${theme}Share` : theme);
  const over = OVER[theme];
  const at = (share) => table[Math.round(255 * Math.min(1, Math.max(0, share)))];
  if (kind === "share") return (value) => at(value);
  if (kind === "signed") return (value) => at(0.5 + value / (2 * limit));
  return (value) => (value > 2.0001 ? over : at(value / 2));
}

function scaleNode(kind, words, { limit = 1, ends = null } = {}) {
  const strip = el("span", { class: "strip" });
  const named = ends ?? { relative: ["0", "2"], share: ["0", "1"], signed: [`−${say(limit)}`, `+${say(limit)}`] }[kind];
  const paint = () => {
    const theme = inks(false).name;
    const stops = SCALES[kind === "share" ? `${theme}Share` : theme];
    strip.style.background = `linear-gradient(90deg, ${stops.join(",")})`;
    if (over) over.firstChild.style.background = OVER[theme];
  };
  const over = kind === "relative" ? el("span", {}, el("span", { class: "over", style: "display:inline-block" }), " > 2") : null;
  redraws.push(paint);
  const node = el("div", { class: "scale" }, named[0], strip, named[1], over, el("span", {}, words));
  paint();
  return node;
}

const SERIES_COLOURS = Array.from({ length: 8 }, (_, i) => `var(--c${i})`);
