// What each task's score becomes without a skill, beside how much of the skill it uses.

function missed(change, need) {
  return change === null ? null : need * change;
}

function knockoutSection(table) {
  const at = Object.fromEntries(table.columns.map((name, c) => [name, c]));
  const listed = plainTable("Knock-out", table);
  if (!["task", "skill", "metric", "change"].every((name) => name in at)) return listed;
  const distinct = (name) => [...new Set(table.rows.map((row) => row[at[name]]))];
  const [tasks, skills, metrics] = [distinct("task").map(String), distinct("skill"), distinct("metric")];
  const cells = new Map(table.rows.map((row, i) => [[row[at.task], row[at.skill], row[at.metric]].join("\n"), i]));
  const state = { metric: metrics.find((name) => name !== "loss") ?? metrics[0], text: "" };
  const place = (t, k) => cells.get([tasks[t], skills[k], state.metric].join("\n"));
  const cell = (t, k, name) => table.rows[place(t, k)]?.[at[name]] ?? null;
  const S = skills.length;
  const map = new HeatMap({ label: "Knock-out map, tasks by skills", describe });
  const legend = el("div");

  function describe(t, c) {
    const k = c % S;
    const sure = table.intervals?.[place(t, k)]?.[at.change];
    const ends = sure ? ` (${say(sure[0])} to ${say(sure[1])})` : "";
    return [tasks[t], `skill ${skills[k]}`, `allocation ${say(cell(t, k, "allocation"))} × uniform`, `change of ${state.metric} without it ${say(cell(t, k, "change"))}${ends}`].join(" · ");
  }

  function update() {
    const changes = tasks.flatMap((_, t) => skills.map((_, k) => Math.abs(cell(t, k, "change") ?? 0)));
    const limit = changes.reduce((most, value) => Math.max(most, value), 1e-9);
    const keep = matcher(state.text);
    const need = state.metric === "loss" ? 1 : -1; // the colour of use where the skill is missed
    legend.replaceChildren(scaleNode("relative", "allocation: weight × number of skills, 1 = uniform"), scaleNode("signed", `${state.metric} without the skill, up to ${say(limit)} better or worse`, { ends: ["better", "worse"] }));
    map.set({
      rows: tasks.map((_, t) => t).filter((t) => keep(tasks[t])), names: tasks,
      columns: [...skills, ...skills].map(String),
      groups: [{ label: "allocation", count: S }, { label: `change of ${state.metric}`, count: S }],
      value: (t, c) => (c < S ? cell(t, c, "allocation") : missed(cell(t, c - S, "change"), need)),
      kind: (c) => (c < S ? "relative" : "signed"), limit, tree: null,
    });
  }

  const controls = el("div", { class: "controls" },
    choice("Metric", metrics, (value) => { state.metric = value; update(); }, { value: state.metric }).node,
    searchField("Tasks", (text) => { state.text = text; update(); }, "part of a name").node);
  const node = el("div", {}, controls, map.node, legend, el("details", {}, el("summary", {}, "As a table"), listed.node));
  return { node, draw: update };
}
