// The page of a sweep: all runs in a table, and the chosen ones side by side.

const MOST_CHOSEN = 12;
const FIRST_CHOSEN = 4;

function isScore(name) {
  return /^(test|val|recovery|routing)\//.test(name);
}

function sweepSections(data) {
  const { columns, rows } = data;
  const at = (name) => columns.indexOf(name);
  const settings = data.varying.filter((name) => !isScore(name) && !["job", "folder", "status", "error", "seconds", "started", "commit", "trainable_parameters"].includes(name));
  const names = rows.map((row) => [`job ${say(row[at("job")])}`, ...settings.slice(0, 4).map((name) => `${name.split(".").pop()}=${say(row[at(name)])}`)].join(" · "));
  const picked = selection(data, settings);
  const table = dataTable({
    label: "Runs of the sweep", columns, rows,
    marks: rows.map((row) => (row[at("status")] === "completed" ? null : "failed")),
    pick: { label: "show", name: (i) => `Show ${names[i]}`, chosen: picked.chosen, toggle: (i, on) => picked.toggle(i, on) },
  });
  picked.listeners.push(table.mark);
  const full = el("span", { class: "count", role: "status" });
  picked.full = full;
  const parts = [{ title: "Runs", words: `What differs comes first. The ticked runs (at most ${MOST_CHOSEN}) are shown below.`, node: el("div", {}, el("div", { class: "controls" }, table.controls, el("button", { class: "plain", type: "button", onclick: () => picked.clear() }, "Untick all"), full), table.node) }];
  const score = picked.score;
  const varying = columns.filter((name) => data.varying.includes(name) && !["folder", "error", "status", "started", "commit"].includes(name));
  if (varying.length > 1 && rows.length > 1) {
    const x = settings.find((name) => name !== "seed") ?? settings[0] ?? "job";
    const colour = settings.find((name) => name !== x && name !== "seed") ?? x;
    const scatter = scatterChart({ columns, rows, names, picked, initial: { x, y: score ?? varying[varying.length - 1], colour } });
    const keys = [...settings.slice(0, 6), ...varying.filter((name) => isScore(name)).slice(0, 3)];
    const parallel = keys.length > 1 ? parallelChart({ columns, rows, keys, picked, colour: score ?? keys[keys.length - 1] }) : null;
    picked.listeners.push(scatter.mark, ...(parallel ? [parallel.mark] : []));
    parts.push({ title: "Scatter", words: "A point for each run. Where a column has few values, equal points are moved aside.", node: scatter.node });
    if (parallel) parts.push({ title: "Settings and scores", words: "A line for each run; the ticked ones are thick.", node: parallel.node });
  }
  if (data.curves.some((own) => Object.keys(own).length)) parts.push({ title: "Curves", ...sweepCurves(data, picked, names) });
  if (data.maps.groups.length) parts.push({ title: "Allocations", words: "Aligned means of the ticked runs. Skills of different runs are exchangeable, so they stand in matched order; tasks stand in the order of their hierarchy.", ...sweepMaps(data, picked, names) });
  parts.push({ title: "Configuration", words: "Keys that differ, in the ticked runs.", ...differences(data.config, picked, names, "Configuration") });
  parts.push({ title: "Environment", words: "What differs between the ticked runs; below, what all runs share.", ...differences(data.environment, picked, names, "Environment") });
  picked.changed();
  return parts;
}

// Which runs are ticked: at first those with the best score.
function selection({ columns, rows, varying }) {
  const score = ["test/exact_match", "val/exact_match", ...columns.filter((name) => /^(test|val)\//.test(name) && !name.endsWith("/loss"))].find((name) => varying.includes(name));
  const value = (i) => rows[i][columns.indexOf(score)];
  const ranked = rows.map((_, i) => i).filter((i) => rows[i][columns.indexOf("status")] === "completed");
  if (score) ranked.sort((a, b) => (value(b) ?? -Infinity) - (value(a) ?? -Infinity));
  const picked = { chosen: new Set(ranked.slice(0, FIRST_CHOSEN)), listeners: [], score };
  picked.list = () => [...picked.chosen].sort((a, b) => a - b);
  picked.changed = () => picked.listeners.forEach((listen) => listen());
  picked.clear = () => { picked.chosen.clear(); picked.changed(); };
  picked.toggle = (i, on) => {
    if (on && picked.chosen.size >= MOST_CHOSEN) picked.full.textContent = `${MOST_CHOSEN} are ticked already: untick one first.`;
    else {
      picked.full.textContent = "";
      on ? picked.chosen.add(i) : picked.chosen.delete(i);
    }
    picked.changed();
  };
  return picked;
}

function sweepCurves({ curves }, picked, names) {
  const keys = [...new Set(curves.flatMap((own) => Object.keys(own)))].filter((name) => name !== "seconds");
  const state = { key: keys.find((name) => name === "train/loss") ?? keys[0] };
  const first = ["train/loss", "val/exact_match", "routing/entropy"].filter((name) => keys.includes(name));
  const charts = [...new Set([...first, state.key])].map((key) => [() => key, lineChart({ title: key, series: [] })]);
  const free = lineChart({ title: state.key, series: [], wide: true });
  const pick = choice("Any other number", keys, (value) => { state.key = value; update(); }, { value: state.key });
  charts.push([() => state.key, free]);
  const known = new Map();
  const series = (i, key) => {
    const id = `${i} ${key}`;
    if (!known.has(id)) {
      const [steps, values] = curves[i][key].map(floats);
      known.set(id, { steps: [...steps], values: [...values] });
    }
    return { name: names[i], brief: names[i].split(" · ")[0], ...known.get(id) };
  };
  function update() {
    for (const [key, chart] of charts) {
      chart.set(coloured(picked.list().filter((i) => curves[i][key()]).map((i) => series(i, key()))));
      chart.node.querySelector("h3").textContent = key();
    }
  }
  picked.listeners.push(update);
  return { node: el("div", {}, el("div", { class: "charts" }, charts.slice(0, -1).map(([, chart]) => chart.node)), el("div", { class: "controls" }, pick.node), el("div", { class: "charts" }, free.node)) };
}

function sweepMaps({ maps }, picked, names) {
  const node = el("div");
  const made = maps.groups.map((group) => {
    const decodedRuns = new Map();
    const cells = (i) => {
      if (!decodedRuns.has(i)) decodedRuns.set(i, new Uint8Array(bytes(group.runs[i])));
      return decodedRuns.get(i);
    };
    const S = group.skills;
    let runs = [];
    const weight = (t, c) => cells(runs[Math.floor(c / S)])[t * S + (c % S)] / 255;
    const map = new HeatMap({ label: `Allocations, ${S} skills`, describe: (t, c) => [group.tasks[t], names[runs[Math.floor(c / S)]], `aligned skill ${c % S}`, `weight ${weight(t, c).toFixed(2)}`, `${(weight(t, c) * S).toFixed(2)} × uniform`].join(" · ") });
    const agree = group.agreement === null ? "" : ` Agreement of all ${Object.keys(group.runs).length} such runs: ${group.agreement.toFixed(2)}.`;
    const box = el("div", {}, el("h3", {}, `${S} skills, ${group.tasks.length} tasks`), el("p", { class: "say" }, `Matched among runs of this size.${agree} Weights are rounded to 1/255.`), map.node);
    node.append(box);
    return () => {
      runs = picked.list().filter((i) => i in group.runs).slice(0, Math.max(1, Math.floor(96 / S)));
      box.hidden = runs.length === 0;
      if (!runs.length) return;
      map.set({
        rows: group.order, names: group.tasks,
        columns: runs.flatMap(() => Array.from({ length: S }, (_, k) => String(k))),
        groups: runs.map((i) => ({ label: names[i].split(" · ")[0], count: S })), value: (t, c) => weight(t, c) * S, kind: "relative", tree: null,
      });
    };
  });
  const draw = () => made.forEach((one) => one());
  picked.listeners.push(draw);
  node.append(scaleNode("relative", "weight × number of skills: 0 = not used, 1 = uniform"));
  return { node, draw };
}

function differences({ differ, same }, picked, names, label) {
  const place = el("div");
  const list = (prefix) => {
    const runs = picked.list();
    const rows = differ.filter(([, values]) => new Set(runs.map((i) => values[i])).size > 1).map(([key, values]) => [key, ...runs.map((i) => values[i])]);
    place.replaceChildren(rows.length ? plainTable(`${prefix} that differs`, { columns: ["key", ...runs.map((i) => names[i])], rows }).node : el("p", { class: "say" }, "Nothing differs between the ticked runs."));
  };
  picked.listeners.push(() => list(label));
  const shared = same.length ? opensForPrint(el("details", {}, el("summary", {}, `${same.length} keys that all runs share`), pairs(label, same).node)) : null;
  return { node: el("div", {}, place, shared) };
}
