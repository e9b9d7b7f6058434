// Runs as points over two columns, and as lines over many.

// Places of a column's values on an axis: many numbers as they are, words and few values evenly.
// `room` is how far a point may be moved aside so that equal ones do not hide each other.
function axisOf(values) {
  const known = values.filter((value) => value !== null);
  const apart = new Set(known).size;
  const few = apart <= 6 && known.length >= 2 * apart;
  if (!few && known.every((value) => typeof value === "number")) {
    const [low, high] = span(known);
    const pad = (high - low) * 0.04;
    return { at: (value) => (value === null ? null : (value - low + pad) / (high - low + 2 * pad)), ticks: ticks(low, high), name: short, room: 0 };
  }
  const words = [...new Set(known.map(String))].sort((a, b) => a.localeCompare(b, "en", { numeric: true }));
  const name = (word) => (word.length > 14 ? `${word.slice(0, 13)}…` : word);
  const at = (value) => (value === null ? null : (words.indexOf(String(value)) + 0.5) / words.length);
  return { at, ticks: words.length > 12 ? [words[0], words[words.length - 1]] : words, name, room: 0.5 / words.length };
}

// Colours of a column: few different values apart, many numbers on a scale.
function hues(values) {
  const known = [...new Set(values.filter((value) => value !== null))];
  if (known.length > 8 && known.every((value) => typeof value === "number")) {
    const [low, high] = span(known);
    const stops = ["var(--from)", "var(--to)"];
    return { of: (value) => (value === null ? "var(--rule)" : `color-mix(in oklab, ${stops[1]} ${Math.round((100 * (value - low)) / (high - low))}%, ${stops[0]})`), legend: [[say(low), stops[0]], [say(high), stops[1]]] };
  }
  known.sort((a, b) => (typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), "en", { numeric: true })));
  const of = (value) => (value === null ? "var(--rule)" : SERIES_COLOURS[known.indexOf(value) % 8]);
  return { of, legend: known.slice(0, 12).map((value) => [say(value), of(value)]) };
}

function legendOf(title, { legend }) {
  return legend.map(([name, colour]) => el("li", {}, el("i", { style: `background:${colour}` }), `${title} ${name}`));
}

function scatterChart({ columns, rows, names, picked, initial }) {
  const state = { ...initial };
  const { width, height, left, right, top, bottom } = { ...WIDE, left: 70, height: 380 };
  const scene = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": "Runs as points" });
  const readout = el("p", { class: "readout idle", "aria-live": "polite" }, "Point at a run, or focus the chart and use the left and right keys; Enter selects.");
  const legend = el("ul", { class: "legend" });
  const figure = el("figure", { class: "wide", tabindex: "0", "aria-label": "Scatter of runs; left and right keys go from run to run, Enter selects" }, scene, legend, readout);
  let dots = [];
  let at = -1;

  const column = (key) => rows.map((row) => row[columns.indexOf(key)]);

  function update() {
    const [xs, ys, cs] = [column(state.x), column(state.y), column(state.colour)];
    const [ax, ay, hue] = [axisOf(xs), axisOf(ys), hues(cs)];
    const aside = (i, room, key) => room * (((i * key) % 1) - 0.5);
    const x = (value, i = null) => left + (ax.at(value) + (i === null ? 0 : aside(i, ax.room, 0.618034))) * (width - left - right);
    const y = (value, i = null) => height - bottom - (ay.at(value) + (i === null ? 0 : aside(i, ay.room, 0.414214))) * (height - top - bottom);
    scene.replaceChildren();
    axes(scene, { width, height, left, right, bottom }, { x, y, xs: ax.ticks, ys: ay.ticks, xNames: ax.name, yNames: ay.name, xLabel: state.x });
    const places = rows.map((_, i) => i).filter((i) => xs[i] !== null && ys[i] !== null);
    places.sort((a, b) => ax.at(xs[a]) - ax.at(xs[b]) || ay.at(ys[a]) - ay.at(ys[b]));
    dots = places.map((i) => svg("circle", { class: picked.chosen.has(i) ? "dot chosen" : "dot", cx: x(xs[i], i), cy: y(ys[i], i), r: 4.5, style: `fill:${hue.of(cs[i])}`, "data-row": i, onpointerenter: () => read(i), onclick: () => picked.toggle(i, !picked.chosen.has(i)) }));
    scene.append(...dots);
    legend.replaceChildren(...legendOf(state.colour, hue));
    figure.setAttribute("aria-label", `${state.y} against ${state.x}; left and right keys go from run to run, Enter selects`);
  }

  function read(i) {
    const value = (key) => `${key} ${say(rows[i][columns.indexOf(key)])}`;
    readout.classList.remove("idle");
    readout.textContent = [names[i], ...[...new Set([state.x, state.y, state.colour])].map(value)].join(" · ");
    dots.forEach((dot, place) => {
      dot.setAttribute("r", Number(dot.dataset.row) === i ? 7 : 4.5);
      if (Number(dot.dataset.row) === i) at = place;
    });
  }

  figure.addEventListener("keydown", (event) => {
    if (event.target !== figure || !dots.length) return;
    const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (event.key === "Enter" && at >= 0) dots[at].dispatchEvent(new Event("click"));
    if (move === undefined) return;
    event.preventDefault();
    at = Math.max(0, Math.min(dots.length - 1, at + move));
    read(Number(dots[at].dataset.row));
  });
  const controls = el("div", { class: "controls" }, [["Across", "x"], ["Up", "y"], ["Colour", "colour"]].map(([label, key]) =>
    choice(label, columns, (value) => { state[key] = value; update(); }, { value: state[key] }).node));
  update();
  return { node: el("div", {}, controls, el("div", { class: "charts" }, figure)), mark: () => dots.forEach((dot) => dot.classList.toggle("chosen", picked.chosen.has(Number(dot.dataset.row)))) };
}

// Parallel coordinates: a line for each run over the columns that vary.
function parallelChart({ columns, rows, keys, picked, colour }) {
  const { width, height } = { width: 1120, height: 300 };
  const [top, bottom] = [34, 18];
  const scene = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `Runs as lines over ${keys.join(", ")}` });
  const hue = hues(rows.map((row) => row[columns.indexOf(colour)]));
  const scales = keys.map((key) => axisOf(rows.map((row) => row[columns.indexOf(key)])));
  const x = (i) => 60 + (i * (width - 130)) / Math.max(1, keys.length - 1);
  const y = (share) => height - bottom - share * (height - top - bottom);
  const lines = rows.map((row, r) => {
    const places = keys.map((key, i) => [x(i), scales[i].at(row[columns.indexOf(key)])]).filter(([, share]) => share !== null);
    const path = places.map(([px, share]) => `${px.toFixed(1)},${y(share).toFixed(1)}`).join("L");
    return svg("path", { class: "path", d: path ? `M${path}` : "", style: `stroke:${hue.of(row[columns.indexOf(colour)])}`, "data-row": r });
  });
  scene.append(...lines);
  keys.forEach((key, i) => {
    const last = i === keys.length - 1 && i > 0;
    scene.append(svg("line", { class: "grid", x1: x(i), x2: x(i), y1: top, y2: height - bottom }),
      svg("text", { x: x(i), y: i % 2 ? 24 : 12, "text-anchor": last ? "end" : i ? "middle" : "start" }, key));
    for (const value of scales[i].ticks) scene.append(svg("text", { x: x(i) + 5, y: y(scales[i].at(value)) + 4 }, scales[i].name(value)));
  });
  const node = el("figure", { class: "wide" }, scene, el("ul", { class: "legend" }, legendOf(colour, hue)));
  const mark = () => lines.forEach((line, i) => {
    line.classList.toggle("chosen", picked.chosen.has(i));
    if (picked.chosen.has(i)) scene.append(line);
  });
  return { node: el("div", { class: "charts" }, node), mark };
}
