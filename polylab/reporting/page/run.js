// The page of one run, or of an evaluation of one.

function runSections(data) {
  const parts = [];
  const add = (title, made, words) => made && parts.push({ title, words, ...made });
  add("Scores", data.scores.length ? scoresSection(data.scores) : null, "Each task's scores with 95 % intervals where they were measured: what other examples of the same task would give.");
  add("Allocation", data.allocation && allocationSection(data.allocation, data.categories), "Which skills each task mixes.");
  add("Knock-out", data.knockout && knockoutSection(data.knockout), "What becomes of each task's score when a skill is taken away.");
  add("Interventions", data.interventions && interventionsSection(data), "Scores with the routing replaced, as means over tasks; changes are paired by example, with 95 % intervals.");
  add("Recovery", data.recovery.length ? pairs("Recovery", data.recovery) : null, "How well the routing found the skills that the tasks are known to be made of.");
  add("Curves", data.history.series.length ? curvesSection(data.history) : null);
  add("Routing by layer", data.routing && routingSection(data.routing));
  add("Figures", data.pictures.length ? picturesSection(data.pictures) : null);
  add("Configuration", data.config.length ? pairs("Configuration", data.config) : null, "What reproduces the run.");
  add("Environment", data.environment.length ? pairs("Environment", data.environment) : null);
  return parts;
}

function scoresSection(scores) {
  const place = el("div");
  const made = scores.map((one) => dataTable({ label: `Scores of the ${one.split}`, columns: one.columns, rows: one.rows, intervals: one.intervals }));
  const split = choice("Split", scores.map((one, i) => [i, one.split]), (value) => show(Number(value)));
  function show(i) {
    place.replaceChildren(el("div", { class: "controls" }, scores.length > 1 ? split.node : null, made[i].controls), made[i].node);
  }
  show(0);
  return { node: place };
}

function plainTable(label, { columns, rows, intervals = null }) {
  const table = dataTable({ label, columns, rows, intervals });
  return { node: el("div", {}, el("div", { class: "controls" }, table.controls), table.node) };
}

function pairs(label, rows) {
  return plainTable(label, { columns: ["key", "value"], rows: rows.map(([key, value]) => [key, value === null ? "null" : typeof value === "number" ? value : String(value)]) });
}

function interventionsSection({ interventions, findings }) {
  const { node } = plainTable("Interventions", interventions);
  if (findings.length) node.prepend(el("ul", {}, findings.map((text) => el("li", {}, text))));
  return { node };
}

function picturesSection(pictures) {
  const place = el("div", { class: "pictures" });
  const fill = () => {
    if (place.firstChild) return;
    place.append(...pictures.map(({ name, data }) => el("div", {}, el("h3", {}, name), el("img", { alt: `Figure ${name} of the run`, src: `data:image/png;base64,${data}` }))));
  };
  const node = el("details", { ontoggle: () => node.open && fill() }, el("summary", {}, pictures.length === 1 ? "The figure that was drawn" : `The ${pictures.length} figures that were drawn`), place);
  return { node: opensForPrint(node, fill) };
}

function adaptationSections(data) {
  return [
    { title: "Means", words: "Over seeds: the mean, and the smallest and largest.", ...meansSection(data) },
    { title: "Rows", words: "One adaptation each.", ...plainTable("Adaptations", data) },
    ...(data.config.length ? [{ title: "Configuration", ...pairs("Configuration", data.config) }] : []),
    ...(data.environment.length ? [{ title: "Environment", ...pairs("Environment", data.environment) }] : []),
  ];
}

function meansSection({ columns, rows }) {
  const keys = ["task", "method", "shots"];
  const scores = columns.filter((name) => ![...keys, "seed", "parameters", "seconds"].includes(name));
  const at = (row, name) => row[columns.indexOf(name)];
  const found = new Map();
  for (const row of rows) {
    const key = JSON.stringify(keys.map((name) => at(row, name)));
    found.set(key, [...(found.get(key) ?? []), row]);
  }
  const means = [];
  const intervals = [];
  for (const [key, own] of found) {
    const values = scores.map((name) => own.map((row) => at(row, name)).filter((value) => typeof value === "number"));
    const mean = (list) => (list.length ? list.reduce((a, b) => a + b, 0) / list.length : null);
    means.push([...JSON.parse(key), own.length, ...values.map(mean)]);
    intervals.push([null, null, null, null, ...values.map((list) => (list.length > 1 ? [Math.min(...list), Math.max(...list)] : null))]);
  }
  const table = dataTable({ label: "Means over seeds", columns: [...keys, "seeds", ...scores], rows: means, intervals });
  return { node: el("div", {}, el("div", { class: "controls" }, table.controls), table.node) };
}
