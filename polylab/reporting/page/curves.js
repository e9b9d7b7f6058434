// Everything that was logged: charts of what belongs together, and one of any numbers one picks.

const MOST_CHARTS = 15;
const LINES = 8; // of one chart

function coloured(list) {
  return list.map((one, i) => ({ ...one, colour: SERIES_COLOURS[i % 8] }));
}

function groups(names) {
  const found = new Map();
  const put = (title, name) => found.set(title, [...(found.get(title) ?? []), name]);
  for (const name of names) {
    const parts = name.split("/");
    if (parts.length > 2 || name === "seconds") continue;
    if (parts[1] === "loss") put("loss", name);
    else if (name === "routing/effective_skills") put("effective number of skills", name);
    else if (["lr", "grad_norm", "val", "test"].includes(parts[0])) put({ lr: "learning rate", grad_norm: "gradient norm", val: "validation", test: "test" }[parts[0]], name);
    else if (name.startsWith("routing/recovery")) put("recovery of the true skills", name);
    else if (/^routing\/.*_loss$/.test(name)) put("loss with the routing replaced", name);
    else if (/^routing\/(dead|duplicate)_skills$/.test(name)) put("dead and duplicate skills", name);
    else if (parts[0] === "routing") put("routing", name);
    else put(name, name);
  }
  const first = ["loss", "validation", "routing", "loss with the routing replaced", "effective number of skills", "dead and duplicate skills", "recovery of the true skills", "learning rate", "gradient norm"];
  const rank = (title) => (first.indexOf(title) + 1 || 99);
  const sorted = [...found].sort(([a], [b]) => rank(a) - rank(b)).filter(([title]) => title !== "test");
  return sorted.flatMap(([title, members]) => parted(members).map((part) => [title, part])).slice(0, MOST_CHARTS);
}

function parted(members) {
  const parts = [];
  for (let first = 0; first < members.length; first += LINES) parts.push(members.slice(first, first + LINES));
  return parts;
}

function curvesSection({ series, words }) {
  const of = new Map(series.map(([name, steps, values]) => [name, { name, steps, values }]));
  const names = [...of.keys()];
  const charts = groups(names).map(([title, members]) => lineChart({ title, series: coloured(members.map((name) => of.get(name))), unit: title === "routing" ? [0, 1] : [] }).node);
  const node = el("div", {}, el("div", { class: "charts" }, charts), pickedChart(names, (name) => of.get(name)), words.map((text) => el("p", { class: "say" }, text)));
  return { node };
}

function pickedChart(names, get) {
  const picked = new Set();
  const chart = lineChart({ title: "Any logged numbers", series: [], wide: true });
  const labels = names.map((name) => {
    const box = el("input", { type: "checkbox", onchange: () => {
      box.checked ? picked.add(name) : picked.delete(name);
      chart.set(coloured([...picked].map(get)));
      chart.node.hidden = picked.size === 0;
    } });
    return el("label", {}, box, name);
  });
  chart.node.hidden = true;
  const filter = searchField("Logged numbers", (text) => {
    const keep = matcher(text);
    labels.forEach((label, i) => { label.hidden = !keep(names[i]); });
  }, "part of a name");
  return el("details", {}, el("summary", {}, `Pick from all ${names.length} logged numbers`),
    el("div", { class: "controls" }, filter.node), el("div", { class: "picks", tabindex: "0", role: "group", "aria-label": "Logged numbers" }, labels),
    el("div", { class: "charts" }, chart.node));
}

const STATISTICS = {
  entropy: "routing entropy (1 = uniform)", discreteness: "discreteness (1 = every gate on or off)",
  density: "density (share of gates above one half)", usage_entropy: "usage entropy (1 = all skills used alike)",
  effective_skills: "effective number of skills",
};

function routingSection({ steps, layers, statistics, words }) {
  const names = Object.keys(statistics);
  const state = { statistic: names[0], layer: 0 };
  const title = (layer) => layer || "mean over layers";
  const chart = lineChart({ title: "Routing by layer", series: [], wide: true });
  function update() {
    const table = statistics[state.statistic];
    const line = (i, faint) => ({ name: title(layers[i]), ...known(steps, table[i]), colour: i === 0 ? "var(--c0)" : "var(--c1)", faint });
    const faint = layers.map((_, i) => i).filter((i) => i !== 0 && i !== state.layer);
    chart.set([...faint.map((i) => line(i, true)), line(0, false), ...(state.layer ? [line(state.layer, false)] : [])]);
    chart.node.querySelector("h3").textContent = `${STATISTICS[state.statistic] ?? state.statistic}: each layer, thin; the mean over layers, blue`;
  }
  const controls = el("div", { class: "controls" },
    choice("Statistic", names, (value) => { state.statistic = value; update(); }).node,
    choice("Layer", layers.map((name, i) => [i, title(name)]), (value) => { state.layer = Number(value); update(); }).node);
  update();
  return { node: el("div", {}, controls, el("div", { class: "charts" }, chart.node), words.map((text) => el("p", { class: "say" }, text))) };
}

function known(steps, values) {
  const kept = steps.map((_, i) => i).filter((i) => values[i] !== null);
  return { steps: kept.map((i) => steps[i]), values: kept.map((i) => values[i]) };
}
