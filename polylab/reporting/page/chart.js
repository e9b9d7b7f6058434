// A chart of lines over steps; the pointer or the left and right keys read the values.

// as wide as they are shown, so that letters keep their size
const NARROW = { width: 370, height: 210, left: 44, right: 10, top: 10, bottom: 24 };
const WIDE = { width: 1150, height: 320, left: 52, right: 14, top: 12, bottom: 26 };

function ticks(low, high, count = 4) {
  if (!(high > low)) return [low];
  const rough = (high - low) / count;
  const unit = 10 ** Math.floor(Math.log10(rough));
  const size = [1, 2, 2.5, 5, 10].map((m) => m * unit).find((candidate) => candidate >= rough * 0.999);
  const found = [];
  for (let value = Math.ceil(low / size) * size; value <= high + size * 1e-6; value += size) found.push(Number(value.toPrecision(10)));
  return found;
}

function short(value, digits = 3) {
  const size = Math.abs(value);
  if (size >= 1e6 || (size > 0 && size < 1e-3)) return value.toExponential(digits - 3);
  if (size >= 1e4) return `${Number((value / 1000).toPrecision(digits))}k`;
  return String(Number(value.toPrecision(digits)));
}

// As few digits as tell the ticks of an axis apart.
function tickNames(values) {
  const differ = (digits) => new Set(values.map((value) => short(value, digits))).size === values.length;
  const digits = [3, 4, 5, 6, 7].find(differ) ?? 8;
  return (value) => short(value, digits);
}

function span(values) {
  let [low, high] = [Infinity, -Infinity];
  for (const value of values) {
    if (value === null || Number.isNaN(value)) continue;
    low = Math.min(low, value);
    high = Math.max(high, value);
  }
  if (low > high) return [0, 1];
  if (low === 0 && high === 0) return [0, 1];
  return low === high ? [low - Math.abs(low || 1) * 0.1, high + Math.abs(high || 1) * 0.1] : [low, high];
}

function axes(scene, plot, { x, y, xs, ys, xLabel, xNames, yNames }) {
  const { width, height, left, right, bottom } = plot;
  [xNames, yNames] = [xNames ?? tickNames(xs), yNames ?? tickNames(ys)];
  for (const value of ys) {
    scene.append(svg("line", { class: "grid", x1: left, x2: width - right, y1: y(value), y2: y(value) }),
      svg("text", { x: left - 7, y: y(value) + 4, "text-anchor": "end" }, yNames(value)));
  }
  for (const value of xs) {
    scene.append(svg("text", { x: x(value), y: height - bottom + 16, "text-anchor": "middle" }, xNames(value)));
  }
  if (xLabel) scene.append(svg("text", { x: width - right, y: height - bottom - 5, "text-anchor": "end" }, xLabel));
}

// series: [{name, steps, values, colour, faint}]
function lineChart({ title, series, wide = false, unit = [] }) {
  const plot = wide ? WIDE : NARROW;
  const { width, height, left, right, top, bottom } = plot;
  const scene = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${title}: curves over steps` });
  const readout = el("p", { class: "readout idle", "aria-live": "polite" });
  const legend = el("ul", { class: "legend" });
  const node = el("figure", { class: wide ? "wide" : null, tabindex: "0", "aria-label": `${title}; left and right keys read the values` }, el("h3", {}, title), scene, legend, readout);
  let shown = [];
  let steps = [];
  let scales = null;
  let at = -1;

  function set(next) {
    shown = next.filter((one) => one.steps.length > 0);
    scene.replaceChildren();
    steps = [...new Set(shown.flatMap((one) => [...one.steps]))].sort((a, b) => a - b);
    const [x0, x1] = steps.length > 1 ? [steps[0], steps[steps.length - 1]] : [0, Math.max(1, steps[0] ?? 1)];
    let [y0, y1] = span(shown.flatMap((one) => [...one.values]));
    if (unit.length) [y0, y1] = [Math.min(unit[0], y0), Math.max(unit[1], y1)];
    const pad = (y1 - y0) * 0.04;
    const x = (value) => left + ((value - x0) / (x1 - x0 || 1)) * (width - left - right);
    const y = (value) => height - bottom - ((value - y0 + pad) / (y1 - y0 + 2 * pad)) * (height - top - bottom);
    scales = { x, y, x0, x1 };
    axes(scene, plot, { x, y, xs: ticks(x0, x1, wide ? 8 : 4), ys: ticks(y0, y1) });
    scene.append(svg("text", { x: left - 12, y: height - bottom + 16, "text-anchor": "end" }, "step")); // where no curve goes
    for (const one of [...shown].sort((a, b) => !!b.faint - !!a.faint)) scene.append(...curve(one, x, y));
    scene.append(svg("line", { class: "cross", y1: top, y2: height - bottom, visibility: "hidden" }));
    const named = shown.filter((one) => !one.faint);
    legend.replaceChildren(...(named.length > 1 || shown.length > 1 ? named : []).map((one) => el("li", {}, el("i", { style: `background:${one.colour}` }), (!wide && one.brief) || one.name)));
    read(-1);
  }

  function curve({ steps: xs, values, colour, faint }, x, y) {
    let path = "";
    let pen = "M";
    for (let i = 0; i < xs.length; i++) {
      if (values[i] === null || Number.isNaN(values[i])) { pen = "M"; continue; }
      path += `${pen}${x(xs[i]).toFixed(1)},${y(values[i]).toFixed(1)}`;
      pen = "L";
    }
    const line = svg("path", { class: faint ? "line faint" : "line", d: path, style: faint ? null : `stroke:${colour}` });
    // a last validation of the same step is a second value there
    const lone = xs[0] === xs[xs.length - 1] ? [svg("circle", { cx: x(xs[0]), cy: y(values[xs.length - 1]), r: 3.5, style: `fill:${colour}` })] : [];
    return [line, ...lone];
  }

  function read(place) {
    at = Math.max(-1, Math.min(steps.length - 1, place));
    const cross = scene.querySelector(".cross");
    if (!cross) return;
    readout.classList.toggle("idle", at < 0);
    if (at < 0) {
      cross.setAttribute("visibility", "hidden");
      const last = shown.filter((one) => !one.faint).slice(0, 4).map((one) => `${one.brief ?? one.name} ${say(one.values[one.values.length - 1])}`);
      readout.textContent = last.length ? `at the end: ${last.join(" · ")}` : "nothing logged";
      return;
    }
    const step = steps[at];
    cross.setAttribute("visibility", "visible");
    cross.setAttribute("x1", scales.x(step));
    cross.setAttribute("x2", scales.x(step));
    const parts = shown.filter((one) => !one.faint).slice(0, 8).map((one) => [one.brief ?? one.name, one.values[one.steps.indexOf(step)]]);
    readout.textContent = [`step ${say(step)}`, ...parts.filter(([, value]) => value !== undefined).map(([name, value]) => `${name} ${say(value)}`)].join(" · ");
  }

  scene.addEventListener("pointermove", (event) => {
    const box = scene.getBoundingClientRect();
    const px = ((event.clientX - box.left) / box.width) * width;
    let best = 0;
    steps.forEach((step, i) => { if (Math.abs(scales.x(step) - px) < Math.abs(scales.x(steps[best]) - px)) best = i; });
    read(best);
  });
  scene.addEventListener("pointerleave", () => read(-1));
  node.addEventListener("keydown", (event) => {
    const move = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity }[event.key];
    if (move === undefined || event.target !== node) return;
    event.preventDefault();
    read(Number.isFinite(move) ? Math.max(0, at + move) : move > 0 ? steps.length - 1 : 0);
  });
  set(series);
  return { node, set };
}
